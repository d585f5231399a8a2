//! Just enough of the pickle protocol to read lists of integers that NumPy pickled; nothing is ever executed.
