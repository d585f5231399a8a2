//! Arrays under Keras' names in a NumPy archive: `embedding/embeddings` `[V,E]`, `lstm/kernel` `[E,4H]`,
//! `lstm/recurrent_kernel` `[H,4H]`, `lstm/bias` `[4H]`, `dense/kernel` `[H,C]`, `dense/bias` `[C]`.

use super::{Array, Arrays, Imported, Weights};
use crate::data::npz::{self, NpzArchive, Values};
use crate::error::Result;
use std::path::Path;

pub(super) fn read(path: &Path) -> Result<Imported> {
    let mut archive = NpzArchive::open(path)?;
    let mut arrays = Arrays::new();
    let names: Vec<String> = archive.names().map(String::from).collect();
    for name in names {
        let array = archive.read(&name)?;
        let Values::Float(values) = array.values else {
            return Err(archive.error(&name, "not floating-point numbers, so no weights"));
        };
        let values = values.into_iter().map(|x| x as f32).collect();
        arrays.insert(name, Array { shape: array.shape, values });
    }
    Ok(Imported { weights: Weights::from_arrays(path, &arrays)?, about: None, maxlen: None })
}

pub(super) fn write(path: &Path, weights: &Weights) -> Result<()> {
    let arrays = weights.arrays(path)?;
    let arrays: Vec<npz::Output<'_>> = arrays
        .iter()
        .map(|(name, array)| npz::Output { name, shape: &array.shape, values: &array.values })
        .collect();
    npz::write_npz(path, &arrays, false)
}
