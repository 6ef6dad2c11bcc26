"""pe-triage: a DICOM node that triages CT pulmonary angiography for pulmonary embolism.

Research software with research weights. It is a triage aid: a negative result does not exclude
pulmonary embolism, and nothing here is a cleared medical device.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
