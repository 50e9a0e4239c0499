"""Tables, figures and a page from the files of an experiment; imports no model code and no torch."""
