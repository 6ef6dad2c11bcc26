"""Pure decisions: which series can be analysed, and when a study is complete."""
