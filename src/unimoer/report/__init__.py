"""Reports: rebuilt from the files of a study alone, section by section; no study is known here by name."""
