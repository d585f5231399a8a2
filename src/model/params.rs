//! The table of parameters: each one's name, shape, place in the flat arena and initialiser stand here, once.

use super::config::ModelConfig;
use crate::error::{Error, Result};

/// How a parameter starts (Keras' default for its layer).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Uniform in `[-limit, limit)`: Keras' `Embedding` has limit 0.05.
    Uniform(f64),
    /// Uniform with limit `sqrt(6/(fan_in+fan_out))` over the matrix' own two dimensions.
    GlorotUniform,
    /// Orthonormal rows (or columns, if it is taller than wide).
    Orthogonal,
    /// Zeros.
    Zeros,
    /// Zeros, with the forget gate's quarter at one (Keras' `unit_forget_bias`).
    ForgetOne,
}

/// One parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Keras' path, e.g. `lstm/recurrent_kernel`; also its name in every weights file.
    pub name: &'static str,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// First element in the arena.
    pub offset: usize,
    /// How it starts.
    pub init: Init,
}

impl ParamSpec {
    /// Elements.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its place in the arena.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// Every parameter of a model, in the arena's order, without gaps.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamTable {
    specs: Vec<ParamSpec>,
    len: usize,
}

/// The parameters (or gradients, or moments) of an arena by name.
#[derive(Clone, Copy, Debug)]
pub struct Views<'a, T> {
    /// `[V,E]`
    pub embeddings: &'a [T],
    /// `[E,4H]`
    pub w: &'a [T],
    /// `[H,4H]`
    pub u: &'a [T],
    /// `[4H]`
    pub b: &'a [T],
    /// `[H,C]`
    pub dense_w: &'a [T],
    /// `[C]`
    pub dense_b: &'a [T],
}

/// [`Views`] to write to.
#[derive(Debug)]
pub struct ViewsMut<'a, T> {
    /// `[V,E]`
    pub embeddings: &'a mut [T],
    /// `[E,4H]`
    pub w: &'a mut [T],
    /// `[H,4H]`
    pub u: &'a mut [T],
    /// `[4H]`
    pub b: &'a mut [T],
    /// `[H,C]`
    pub dense_w: &'a mut [T],
    /// `[C]`
    pub dense_b: &'a mut [T],
}

impl ParamTable {
    /// The table of `config`.
    ///
    /// # Errors
    /// If the parameters would not fit an address space.
    pub fn new(config: &ModelConfig) -> Result<Self> {
        let ModelConfig { vocab: v, embed: e, hidden: h, classes: c, .. } = *config;
        let rows: [(&'static str, Vec<usize>, Init); 6] = [
            ("embedding/embeddings", vec![v, e], Init::Uniform(0.05)),
            ("lstm/kernel", vec![e, 4 * h], Init::GlorotUniform),
            ("lstm/recurrent_kernel", vec![h, 4 * h], Init::Orthogonal),
            ("lstm/bias", vec![4 * h], Init::ForgetOne),
            ("dense/kernel", vec![h, c], Init::GlorotUniform),
            ("dense/bias", vec![c], Init::Zeros),
        ];
        let mut specs = Vec::with_capacity(rows.len());
        let mut offset = 0usize;
        for (name, shape, init) in rows {
            let end = shape
                .iter()
                .try_fold(1usize, |product, &d| product.checked_mul(d))
                .and_then(|len| offset.checked_add(len))
                // Indices reach devices as 32-bit numbers.
                .filter(|&end| end <= i32::MAX as usize)
                .ok_or_else(|| {
                    Error::usage(
                        name,
                        format!("shape {shape:?} brings the model over {} parameters", i32::MAX),
                    )
                })?;
            specs.push(ParamSpec { name, shape, offset, init });
            offset = end;
        }
        Ok(Self { specs, len: offset })
    }

    /// Parameters in all: the length of every arena.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The rows.
    pub fn specs(&self) -> &[ParamSpec] {
        &self.specs
    }

    /// The row of this name.
    pub fn find(&self, name: &str) -> Option<&ParamSpec> {
        self.specs.iter().find(|spec| spec.name == name)
    }

    /// An arena's parameters by name. The arena must have the table's length.
    pub fn views<'a, T>(&self, arena: &'a [T]) -> Views<'a, T> {
        assert_eq!(arena.len(), self.len, "an arena has its table's length");
        let part = |row: usize| &arena[self.specs[row].range()];
        Views { embeddings: part(0), w: part(1), u: part(2), b: part(3), dense_w: part(4), dense_b: part(5) }
    }

    /// [`Self::views`] to write to.
    pub fn views_mut<'a, T>(&self, arena: &'a mut [T]) -> ViewsMut<'a, T> {
        assert_eq!(arena.len(), self.len, "an arena has its table's length");
        let mut rest = arena;
        let mut next = |row: usize| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(self.specs[row].len());
            rest = after;
            part
        };
        ViewsMut {
            embeddings: next(0),
            w: next(1),
            u: next(2),
            b: next(3),
            dense_w: next(4),
            dense_b: next(5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_model_has_166338_parameters_without_gaps() {
        let table = ParamTable::new(&ModelConfig::default()).unwrap();
        assert_eq!(table.len(), 166_338);
        let mut end = 0;
        for spec in table.specs() {
            assert_eq!(spec.offset, end);
            end = spec.range().end;
        }
        assert_eq!(end, table.len());
    }

    #[test]
    fn views_are_the_tables_slices() {
        let config = ModelConfig { vocab: 7, embed: 3, hidden: 2, classes: 5, ..Default::default() };
        let table = ParamTable::new(&config).unwrap();
        let mut arena: Vec<u32> = (0..table.len() as u32).collect();
        let copy = arena.clone();
        let views = table.views(&copy);
        let views_mut = table.views_mut(&mut arena);
        for (spec, (view, view_mut)) in table.specs().iter().zip([
            (views.embeddings, &*views_mut.embeddings),
            (views.w, views_mut.w),
            (views.u, views_mut.u),
            (views.b, views_mut.b),
            (views.dense_w, views_mut.dense_w),
            (views.dense_b, views_mut.dense_b),
        ]) {
            assert_eq!(view, &copy[spec.range()], "{}", spec.name);
            assert_eq!(view, view_mut, "{}", spec.name);
        }
    }

    #[test]
    fn a_model_too_large_is_refused() {
        let config = ModelConfig { vocab: 1 << 24, embed: 1 << 24, ..Default::default() };
        assert!(ParamTable::new(&config).is_err());
    }
}
