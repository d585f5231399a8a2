//! `.npz` archives and `.npy` arrays, validated before anything is parsed or allocated.
