"""From received files to a Hounsfield volume in patient orientation, and what is measured on it."""
