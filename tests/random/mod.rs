//! Examples that repeat words, as text does.

use recurve::data::Examples;
use recurve::rng::{Purpose, Rng};

/// Random ids of which half are among the first three, and labels that depend on the last of them.
pub fn examples(rows: usize, t: usize, vocab: u32, classes: u32) -> Examples {
    let mut rng = Rng::new(7, Purpose::User, 0);
    let mut id = |_| {
        let limit = if rng.below(2) == 0 { 3.min(vocab) } else { vocab };
        rng.below(u64::from(limit)) as u32
    };
    let x: Vec<u32> = (0..rows * t).map(&mut id).collect();
    Examples { y: x.chunks(t).map(|row| row[t - 1] % classes).collect(), x, t }
}
