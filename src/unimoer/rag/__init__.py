"""Retrieval-augmented generation: is one model for both stages of search as good a start for answers as two?"""
