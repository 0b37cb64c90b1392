"""NLVR2: is a sentence true of two photographs?"""
