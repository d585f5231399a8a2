//! Keras' initial values, from a seed.

use super::params::{Init, ParamTable};
use crate::rng::{Purpose, Rng};

/// An arena of initial parameters. Each parameter draws from a stream of its own, so that changing one shape leaves
/// the others' values alone.
pub fn init(table: &ParamTable, seed: u64) -> Vec<f32> {
    let mut arena = vec![0.0f32; table.len()];
    for (row, spec) in table.specs().iter().enumerate() {
        let mut rng = Rng::new(seed, Purpose::Init, row as u32);
        let slice = &mut arena[spec.range()];
        match spec.init {
            Init::Uniform(limit) => uniform(slice, limit, &mut rng),
            Init::GlorotUniform => {
                let fans: usize = spec.shape.iter().sum();
                uniform(slice, (6.0 / fans as f64).sqrt(), &mut rng);
            }
            Init::Orthogonal => orthogonal(slice, spec.shape[0], spec.shape[1], &mut rng),
            Init::Zeros => {}
            Init::ForgetOne => {
                let h = slice.len() / 4;
                slice[h..2 * h].fill(1.0);
            }
        }
    }
    arena
}

fn uniform(slice: &mut [f32], limit: f64, rng: &mut Rng) {
    for x in slice {
        *x = ((2.0 * rng.uniform() - 1.0) * limit) as f32;
    }
}

/// Fills `[rows,cols]` with the orthonormal factor of a normal matrix' QR decomposition whose R has a positive
/// diagonal (Saxe et al. 2014; Keras' `Orthogonal`): the shorter side's vectors are orthonormal.
fn orthogonal(slice: &mut [f32], rows: usize, cols: usize, rng: &mut Rng) {
    let (count, length) = (rows.min(cols), rows.max(cols));
    let mut vectors: Vec<Vec<f64>> = Vec::with_capacity(count);
    while vectors.len() < count {
        let mut vector: Vec<f64> = (0..length).map(|_| rng.normal()).collect();
        // Gram–Schmidt, twice: the second pass removes what rounding left of the first.
        for _ in 0..2 {
            for earlier in &vectors {
                let along = dot(&vector, earlier);
                vector.iter_mut().zip(earlier).for_each(|(x, y)| *x -= along * y);
            }
        }
        let norm = dot(&vector, &vector).sqrt();
        if norm > 1e-6 {
            vector.iter_mut().for_each(|x| *x /= norm);
            vectors.push(vector);
        }
    }
    for (k, vector) in vectors.iter().enumerate() {
        for (j, &x) in vector.iter().enumerate() {
            let index = if rows <= cols { k * cols + j } else { j * cols + k };
            slice[index] = x as f32;
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;

    fn table(vocab: usize, embed: usize, hidden: usize) -> ParamTable {
        ParamTable::new(&ModelConfig { vocab, embed, hidden, ..Default::default() }).unwrap()
    }

    #[test]
    fn the_recurrent_kernel_has_orthonormal_rows() {
        for h in [1, 2, 19, 32] {
            let table = table(10, 3, h);
            let arena = init(&table, 11);
            let u = table.views(&arena).u;
            for r in 0..h {
                for s in 0..=r {
                    let product: f64 =
                        (0..4 * h).map(|k| f64::from(u[r * 4 * h + k]) * f64::from(u[s * 4 * h + k])).sum();
                    let expected = if r == s { 1.0 } else { 0.0 };
                    assert!((product - expected).abs() < 1e-6, "H {h}, rows {r} and {s}: {product}");
                }
            }
        }
    }

    #[test]
    fn tall_matrices_have_orthonormal_columns() {
        let (rows, cols) = (7, 3);
        let mut slice = vec![0.0; rows * cols];
        orthogonal(&mut slice, rows, cols, &mut Rng::new(1, Purpose::User, 0));
        for a in 0..cols {
            for b in 0..cols {
                let product: f32 = (0..rows).map(|r| slice[r * cols + a] * slice[r * cols + b]).sum();
                assert!((product - f32::from(a == b)).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn ranges_and_moments_are_keras() {
        let table = table(10_000, 16, 32);
        let arena = init(&table, 3);
        let views = table.views(&arena);
        for (name, slice, limit) in [
            ("embeddings", views.embeddings, 0.05),
            ("kernel", views.w, (6.0f64 / (16.0 + 128.0)).sqrt()),
            ("dense", views.dense_w, (6.0f64 / 34.0).sqrt()),
        ] {
            let largest = slice.iter().fold(0.0f64, |a, &x| a.max(f64::from(x).abs()));
            assert!(largest <= limit && largest > 0.95 * limit, "{name}: {largest} against {limit}");
            let variance = slice.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>()
                / slice.len() as f64
                / (limit * limit / 3.0);
            let tolerance = 6.0 / (slice.len() as f64).sqrt();
            assert!((variance - 1.0).abs() < tolerance, "{name}: variance ratio {variance}");
        }
        assert!(views.b[32..64].iter().all(|&x| x == 1.0));
        assert!(views.b[..32].iter().chain(&views.b[64..]).all(|&x| x == 0.0));
        assert!(views.dense_b.iter().all(|&x| x == 0.0));
    }

    #[test]
    fn a_seed_gives_the_same_bits_and_another_gives_others() {
        let table = table(50, 4, 8);
        assert_eq!(init(&table, 5), init(&table, 5));
        assert_ne!(init(&table, 5), init(&table, 6));
    }
}
