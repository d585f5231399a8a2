//! Thousands of damaged model and weights files: an error or a model each time, never a panic, and memory in
//! proportion to the file.

// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

use recurve::backend::AdamConfig;
use recurve::checkpoint::Checkpoint;
use recurve::data::text::Vocabulary;
use recurve::data::{self, DataOptions, Source, Words};
use recurve::interchange::Weights;
use recurve::metrics::Metrics;
use recurve::model::{Model, ModelConfig};
use recurve::rng::{Purpose, Rng};
use recurve::train::{EpochMetrics, TrainOptions};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the bytes in use and their peak.
struct Counting;
static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator as it came; the counters are not memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer came from `System.alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The counters see every thread: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Peak of bytes in use above what was there when `work` began.
fn peak_of(work: impl FnOnce()) -> usize {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed) - before
}

/// Memory that reading a file of `len` bytes may take: its arrays, the words with their index (some tens of bytes
/// for a word of one letter), and the copies on the way.
fn bound(len: usize) -> usize {
    64 * len + (1 << 20)
}

fn model() -> Checkpoint {
    let dataset =
        data::load(&DataOptions { source: Source::Sample, num_words: 40, ..Default::default() }, None)
            .unwrap();
    let model = Model::new(ModelConfig { vocab: 40, embed: 3, hidden: 2, ..Default::default() }).unwrap();
    let params = model.init(1);
    let mut checkpoint =
        Checkpoint::new(model, params, AdamConfig::default(), &dataset, TrainOptions::default());
    checkpoint.train_rows.truncate(5);
    checkpoint.state.t = 9;
    checkpoint.progress.epoch = 1;
    checkpoint.progress.batch = 2;
    checkpoint.progress.metrics = Metrics { loss_sum: 0.1 + 0.2, batches: 2, correct: 3, examples: 64 };
    checkpoint.progress.history.push(EpochMetrics {
        epoch: 1,
        loss: 1.0 / 3.0,
        accuracy: 0.7,
        validation_loss: Some(0.1),
        validation_accuracy: None,
        test_loss: Some(f64::MIN_POSITIVE),
        test_accuracy: Some(2.0f64.sqrt()),
    });
    checkpoint
}

fn saved(checkpoint: &Checkpoint) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    checkpoint.save(&path).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn a_model_comes_back_as_it_went_and_equal_models_are_equal_bytes() {
    let _alone = ONE_AT_A_TIME.lock();
    let mut rng = Rng::new(2, Purpose::User, 0);
    for round in 0..50 {
        let mut checkpoint = model();
        // Every bit pattern that is a number, subnormal and infinite ones too.
        for x in
            checkpoint.state.params.iter_mut().chain(&mut checkpoint.state.m).chain(&mut checkpoint.state.v)
        {
            let bits = f32::from_bits(rng.bits() as u32);
            *x = if bits.is_nan() { -0.0 } else { bits };
        }
        checkpoint.progress.metrics.loss_sum = f64::from_bits(rng.bits() >> 2);
        checkpoint.options.seed = rng.bits();
        checkpoint.encoding.words = match round % 3 {
            0 => Words::Prepared,
            1 => Words::ImdbIndex,
            _ => Words::Known(Vocabulary::from_words(vec!["ä\"\\\n".into(), "\u{1f600}".into()]).unwrap()),
        };
        let bytes = saved(&checkpoint);
        assert_eq!(Checkpoint::from_bytes(&bytes, Path::new("m")).unwrap(), checkpoint);
        assert_eq!(saved(&checkpoint.clone()), bytes);
    }
}

#[test]
fn damaged_files_give_errors_and_bounded_memory() {
    let _alone = ONE_AT_A_TIME.lock();
    let folder = tempfile::tempdir().unwrap();
    let weights_path = folder.path().join("w.safetensors");
    let checkpoint = model();
    let weights = Weights { model: checkpoint.model.clone(), params: checkpoint.state.params.clone() };
    weights.save(&weights_path).unwrap();
    assert_eq!(Weights::load(&weights_path).unwrap(), weights);
    let originals = [saved(&checkpoint), std::fs::read(&weights_path).unwrap()];

    let mut rng = Rng::new(3, Purpose::User, 0);
    let (mut errors, mut accepted, mut worst) = (0, 0, 0.0f64);
    for round in 0..6000 {
        let mut bytes = originals[round % 2].clone();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        // The header is where the damage is interesting; the arrays are any bits.
        let at = |rng: &mut Rng, bytes: &[u8]| rng.below(header.min(bytes.len()) as u64) as usize;
        match rng.below(5) {
            0 => {
                let index = at(&mut rng, &bytes);
                bytes[index] ^= 1 << rng.below(8);
            }
            1 => bytes.truncate(rng.below(originals[round % 2].len() as u64) as usize),
            2 => {
                // A number in the header becomes another one, often a huge one.
                let index = at(&mut rng, &bytes);
                if let Some(digit) = bytes[index..header].iter().position(u8::is_ascii_digit) {
                    bytes[index + digit] = b'0' + rng.below(10) as u8;
                    if rng.below(2) == 0 {
                        let value = b"99999999999"[..1 + rng.below(11) as usize].to_vec();
                        bytes.splice(index + digit..=index + digit, value);
                        let length = (header - 8 + bytes.len() - originals[round % 2].len()) as u64;
                        bytes[..8].copy_from_slice(&length.to_le_bytes());
                    }
                }
            }
            3 => bytes[..8].copy_from_slice(&(rng.bits() >> rng.below(64)).to_le_bytes()),
            _ => {
                let (a, b) = (at(&mut rng, &bytes), at(&mut rng, &bytes));
                bytes.splice(a.min(b)..a.max(b), std::iter::repeat_n(b'[', 1 + rng.below(300) as usize));
            }
        }
        let path = folder.path().join("damaged.safetensors");
        std::fs::write(&path, &bytes).unwrap();
        let mut result = None;
        let peak = peak_of(|| {
            let as_model = Checkpoint::load(&path).map(drop);
            let as_weights = Weights::load(&path).map(drop);
            result = Some(if round % 2 == 0 { as_model } else { as_weights });
        });
        assert!(peak <= bound(bytes.len()), "round {round}: {peak} bytes for a file of {}", bytes.len());
        worst = worst.max(peak as f64 / bytes.len().max(1) as f64);
        match result.unwrap() {
            Ok(()) => accepted += 1,
            Err(error) => {
                assert!(error.to_string().contains("damaged.safetensors"), "{error}");
                errors += 1;
            }
        }
    }
    println!(
        "6000 damaged files: {errors} errors, {accepted} still valid; worst peak {worst:.1} times the file"
    );
    assert!(errors > 3000, "too few of the damages were noticed: {errors}");
}
