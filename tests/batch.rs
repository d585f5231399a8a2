//! Padding, the order of an epoch, and the baselines.

// A test's helpers may panic as its body may: clippy.toml covers the bodies alone.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use recurve::data::baseline::baselines;
use recurve::data::batch::{Side, epoch_order, pad_sequences};
use recurve::data::{Examples, Sequences};

const SIDES: [Side; 2] = [Side::Pre, Side::Post];

fn side(name: &serde_json::Value) -> Side {
    match name.as_str() {
        Some("pre") => Side::Pre,
        Some("post") => Side::Post,
        other => panic!("a side is pre or post, found {other:?}"),
    }
}

#[test]
fn padding_equals_keras() {
    // Made by tests/fixtures/text/make.py with Keras itself.
    let golden: serde_json::Value = serde_json::from_str(include_str!("fixtures/text/keras.json")).unwrap();
    let sequences: Vec<Vec<u32>> = serde_json::from_value(golden["sequences"].clone()).unwrap();
    let sequences: Sequences = sequences.into_iter().collect();
    let cases = golden["pad"].as_array().unwrap();
    assert_eq!(cases.len(), 24);
    for case in cases {
        let maxlen = case["maxlen"].as_u64().unwrap() as usize;
        let expected: Vec<Vec<u32>> = serde_json::from_value(case["padded"].clone()).unwrap();
        let found = pad_sequences(&sequences, maxlen, side(&case["padding"]), side(&case["truncating"]));
        assert_eq!(found, expected.concat(), "{case}");
    }
}

#[test]
fn padding_to_no_width_or_of_no_rows_is_empty() {
    let two: Sequences = [vec![1, 2], vec![3]].into_iter().collect();
    assert!(pad_sequences(&two, 0, Side::Pre, Side::Post).is_empty());
    assert!(pad_sequences(&Sequences::new(), 4, Side::Pre, Side::Pre).is_empty());
}

/// Element by element: the id that stands at `t` of the padded row, or none where padding is.
fn id_at(ids: &[u32], maxlen: usize, padding: Side, truncating: Side, t: usize) -> u32 {
    let kept = ids.len().min(maxlen);
    let pads_before = if padding == Side::Pre { maxlen - kept } else { 0 };
    let cut_before = if truncating == Side::Pre { ids.len() - kept } else { 0 };
    match t.checked_sub(pads_before) {
        Some(k) if k < kept => ids[cut_before + k],
        _ => 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn padding_equals_the_naive_definition(
        rows in prop::collection::vec(prop::collection::vec(1u32..1000, 0..40), 0..12),
        maxlen in 1usize..40,
    ) {
        let sequences: Sequences = rows.iter().cloned().collect();
        for padding in SIDES {
            for truncating in SIDES {
                let found = pad_sequences(&sequences, maxlen, padding, truncating);
                let naive: Vec<u32> = rows
                    .iter()
                    .flat_map(|ids| (0..maxlen).map(move |t| id_at(ids, maxlen, padding, truncating, t)))
                    .collect();
                prop_assert_eq!(&found, &naive);
                prop_assert_eq!(found.len(), rows.len() * maxlen);
            }
        }
    }

    #[test]
    fn pre_and_pre_keep_the_last_ids_at_the_end(ids in prop::collection::vec(1u32..1000, 1..60), maxlen in 1usize..40) {
        let kept = ids.len().min(maxlen);
        let one = |padding, truncating| pad_sequences(&[ids.clone()].into_iter().collect(), maxlen, padding, truncating);
        prop_assert_eq!(&one(Side::Pre, Side::Pre)[maxlen - kept..], &ids[ids.len() - kept..]);
        prop_assert_eq!(&one(Side::Post, Side::Post)[..kept], &ids[..kept]);
    }

    #[test]
    fn an_epoch_reads_every_row_once_and_no_row_too_early(
        rows in 0u32..300, buffer in 0usize..400, seed: u64, epoch in 0u32..50,
    ) {
        let order = epoch_order(rows, buffer, seed, epoch);
        prop_assert_eq!(&order, &epoch_order(rows, buffer, seed, epoch));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        prop_assert!(sorted.into_iter().eq(0..rows));

        // tf.data's window: what leaves at position p was among the first p + buffer rows that came in.
        let loaded = epoch_order(rows, buffer.min(1), seed, 0);
        let mut came = vec![0; rows as usize];
        for (position, &row) in loaded.iter().enumerate() {
            came[row as usize] = position;
        }
        for (position, &row) in order.iter().enumerate() {
            prop_assert!(came[row as usize] < position + buffer.max(1), "row {} left at {}", row, position);
        }
    }
}

#[test]
fn buffer_0_is_the_files_order_and_buffer_1_one_permutation_for_all_epochs() {
    assert!(epoch_order(50, 0, 7, 3).into_iter().eq(0..50));
    let once = epoch_order(50, 1, 7, 0);
    assert_ne!(once, epoch_order(50, 0, 7, 0));
    assert_eq!(once, epoch_order(50, 1, 7, 9));
    assert_ne!(once, epoch_order(50, 1, 8, 0));
}

#[test]
fn epochs_and_seeds_differ() {
    for buffer in [10, 50, usize::MAX] {
        let first = epoch_order(50, buffer, 7, 0);
        assert_ne!(first, epoch_order(50, buffer, 7, 1));
        assert_ne!(first, epoch_order(50, buffer, 8, 0));
    }
}

/// Pearson's statistic of counts that should be equal.
fn chi_squared(counts: &[u32]) -> f64 {
    let mean = counts.iter().sum::<u32>() as f64 / counts.len() as f64;
    counts.iter().map(|&n| (n as f64 - mean).powi(2) / mean).sum()
}

#[test]
fn a_full_shuffle_puts_every_row_everywhere_equally_often() {
    const ROWS: usize = 8;
    let mut counts = vec![0; ROWS * ROWS];
    for epoch in 0..8_000 {
        for (position, row) in epoch_order(ROWS as u32, ROWS, 1, epoch).into_iter().enumerate() {
            counts[position * ROWS + row as usize] += 1;
        }
    }
    for (position, row) in counts.chunks(ROWS).enumerate() {
        // 7 degrees of freedom: 1 in 10,000 exceeds 29.9; the seed is fixed.
        assert!(chi_squared(row) < 29.9, "position {position}: {row:?}");
    }
}

#[test]
fn a_small_buffer_leaves_the_first_place_to_its_first_rows_and_drains_at_random() {
    let (rows, buffer) = (10u32, 3usize);
    let loaded = epoch_order(rows, 1, 1, 0);
    let (mut first, mut last) = ([0u32; 3], [0u32; 10]);
    for epoch in 0..9_000 {
        let order = epoch_order(rows, buffer, 1, epoch);
        let came = |row| loaded.iter().position(|&other| other == row).unwrap();
        first[came(order[0])] += 1;
        last[came(order[9])] += 1;
    }
    // 2 degrees of freedom: 1 in 10,000 exceeds 18.4.
    assert!(chi_squared(&first) < 18.4, "{first:?}");
    // The row that came in at k ≥ 3 is in the buffer for the draws at positions k-2 to 9: it is last if it survives
    // them, (2/3)^(10-3-(k-2)) times among three, then (2/3)(1/2) in the drain.
    for (k, &seen) in last.iter().enumerate() {
        let draws = if k < buffer { 7 } else { 9 - k as i32 };
        let expected = (2.0f64 / 3.0).powi(draws) / 3.0;
        let sigma = (expected * (1.0 - expected) / 9_000.0).sqrt();
        assert!((seen as f64 / 9_000.0 - expected).abs() < 4.0 * sigma, "row {k} last in {seen}: {last:?}");
    }
}

#[test]
fn naive_bayes_equals_a_computation_by_hand() {
    // Ids 0, 1 and 2 do not count and 3 stands for no word, so there are V - 4 = 2 outcomes: 4, 5.
    let train = Examples { x: vec![0, 1, 2, 4, 0, 1, 4, 4, 1, 5, 5, 2], y: vec![0, 0, 1], t: 4 };
    // Class 0: rows 2, counts 4:3, total 3. Class 1: rows 1, counts 5:2, total 2.
    // P(id|0) = (1+n)/5: 4: 4/5, 5: 1/5.   P(id|1) = (1+n)/4: 4: 1/4, 5: 3/4.
    let test = Examples {
        x: vec![
            0, 0, 0, 0, // priors alone: 2/3 against 1/3 → 0
            0, 0, 1, 5, // 2/3·1/5 = .133 against 1/3·3/4 = .25 → 1
            0, 0, 5, 4, // 2/3·1/5·4/5 = .107 against 1/3·3/4·1/4 = .0625 → 0
            0, 5, 5, 4, // .0213 against 1/3·9/16·1/4 = .0469 → 1
            1, 1, 1, 2, // an unknown word: priors alone → 0
        ],
        y: vec![0, 1, 0, 1, 1],
        t: 4,
    };
    let found = baselines(&train, &test, 6, 2);
    assert_eq!(found.naive_bayes, 4.0 / 5.0);
    assert_eq!(found.majority, 2.0 / 5.0);
}

#[test]
fn baselines_hold_where_there_is_little_to_learn() {
    let none = Examples { x: vec![], y: vec![], t: 3 };
    let some = Examples { x: vec![2, 3, 4], y: vec![1], t: 3 };
    assert_eq!(baselines(&some, &none, 10, 2).naive_bayes, 0.0);
    assert_eq!(baselines(&none, &some, 10, 2).majority, 0.0);
    // A class that never occurs is never the answer, and ties go to the lower class.
    assert_eq!(baselines(&some, &some, 10, 5).naive_bayes, 1.0);
    let tie = Examples { x: vec![2, 2], y: vec![0, 1], t: 1 };
    let found = baselines(&tie, &tie, 3, 2);
    assert_eq!((found.majority, found.naive_bayes), (0.5, 0.5));
    // Ids and labels beyond their bounds are passed over.
    let beyond = Examples { x: vec![2, u32::MAX], y: vec![0, u32::MAX], t: 1 };
    assert_eq!(baselines(&beyond, &beyond, 3, 2).majority, 0.5);
    assert_eq!(baselines(&beyond, &beyond, 0, 0).majority, 0.0);
}
