//! What the CUDA engine computes, to the last digits: beside the oracle and the CPU, and against a committed hash. On
//! whatever device `parity/device.rs` opens; every test prints which one ran it.
#![cfg(feature = "cuda")]
// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

#[path = "parity/device.rs"]
mod device;

use device::engines;
mod random;

use random::examples;
use recurve::backend::cuda::{Activation, CudaEngine, PathChoice};
use recurve::backend::host::HostEngine;
use recurve::backend::reference::Reference;
use recurve::backend::{AdamConfig, Device, DeviceInfo, Engine, Ops, Part, Parts, StepState, TrainState};
use recurve::data::{self, DataOptions, Examples, Source};
use recurve::metrics::Metrics;
use recurve::model::{Model, ModelConfig};
use sha2::{Digest, Sha256};

fn cpu() -> Box<dyn Engine> {
    Device::Cpu.engine(2).unwrap()
}

/// Steps over `rows` rows in batches of `batch`, the first being number `t + 1`.
fn steps(rows: u32, batch: u32, t: u64, lr: f32) -> Vec<StepState> {
    (0..rows.div_ceil(batch))
        .map(|k| StepState::new(t + 1 + u64::from(k), lr, k * batch, batch.min(rows - k * batch)))
        .collect()
}

/// Steps of so many rows, one after the other through `all` rows, from the first again where too few are left. The first is
/// number `t + 1`.
fn steps_of(sizes: impl IntoIterator<Item = u32>, all: u32, t: u64, lr: f32) -> Vec<StepState> {
    let mut start = 0;
    let step = |(number, rows)| {
        if start + rows > all {
            start = 0;
        }
        start += rows;
        StepState::new(number, lr, start - rows, rows)
    };
    (t + 1..).zip(sizes).map(step).collect()
}

/// The oracle in f64.
fn oracle() -> HostEngine<f64, Reference<f64>> {
    let info =
        DeviceInfo { device: "reference".into(), name: String::new(), executed: "f64".into(), threads: 1 };
    HostEngine::new(Reference::<f64>::new(), info)
}

/// An engine with a fresh model and `examples` in every part, in their own order.
fn load(engine: &mut dyn Engine, model: &Model, examples: &Examples) {
    load_weighted(engine, model, examples, None);
}

/// [`load`] with class weights.
fn load_weighted(engine: &mut dyn Engine, model: &Model, examples: &Examples, class_weights: Option<&[f32]>) {
    let all = Some(examples);
    let parts = Parts { train: all, validation: all, test: all, class_weights };
    engine.load(model, &TrainState::new(model.init(5)), AdamConfig::default(), parts).unwrap();
    let order: Vec<u32> = (0..u32::try_from(examples.rows()).unwrap()).collect();
    engine.set_order(&order, Metrics::default()).unwrap();
}

/// The engine's device with an operation a kernel.
fn unfused(engine: CudaEngine) -> CudaEngine {
    CudaEngine::with_path(engine.into_cuda(), PathChoice::Unfused)
}

/// The largest difference of two arrays.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |worst, d| if d <= worst { worst } else { d })
}

fn bits(state: &TrainState) -> [Vec<u32>; 3] {
    [&state.params, &state.m, &state.v].map(|array| array.iter().map(|x| x.to_bits()).collect())
}

fn model(vocab: usize, embed: usize, hidden: usize, classes: usize) -> Model {
    Model::new(ModelConfig { vocab, embed, hidden, classes, ..ModelConfig::default() }).unwrap()
}

// ---------------------------------------------------------------- training

/// Every path of the layer: sums in the kernel with and without the input's weights, products over slices, streamed
/// rows of U, cells. The last batch is smaller, and clipping and weight decay are on in some steps.
#[test]
fn training_steps_agree_with_the_oracle_on_every_path() {
    // Three steps of at most 0.002 each, of parameters below 1: some sixteen roundings (6e-8).
    const TOLERANCE: f32 = 1e-6;
    for (embed, hidden, path) in [
        (5, 7, "one launch, all weights summed in it"),
        (19, 33, "padded to 64, 32 inputs"),
        (33, 31, "input weights by a product"),
        (70, 6, "two tiles of the table's columns"),
        (3, 65, "padded to 96, weights by products"),
        (4, 99, "padded to 128, half of U streamed"),
        (5, 130, "cell by cell"),
    ] {
        let (model, examples) = (model(50, embed, hidden, 3), examples(11, 4, 50, 3));
        let mut steps = steps(11, 4, 0, 0.002);
        (steps[1].clip_norm, steps[2].weight_decay) = (0.05, 0.1);
        let mut oracle = Device::Reference.engine(1).unwrap();
        load(oracle.as_mut(), &model, &examples);
        oracle.train(&steps).unwrap();
        let expected = (oracle.poll(true).unwrap(), oracle.read_state().unwrap());
        for mut engine in engines() {
            load(&mut engine, &model, &examples);
            engine.train(&steps).unwrap();
            let (metrics, state) = (engine.poll(true).unwrap(), engine.read_state().unwrap());
            let worst = apart(&state.params, &expected.1.params);
            println!(
                "E {embed}, H {hidden} ({path}): parameters within {worst:.1e} on {}",
                engine.cuda().name()
            );
            assert!(worst <= TOLERANCE, "H {hidden}: {worst}");
            assert!((metrics.loss_sum - expected.0.loss_sum).abs() < 1e-5, "{metrics:?} {:?}", expected.0);
            assert_eq!(
                (metrics.batches, metrics.correct, metrics.examples),
                (3, expected.0.correct, 11),
                "H {hidden}"
            );
            assert_eq!(state.t, 3);
        }
    }
}

/// What a training by this path leaves on every image: metrics, an evaluation, predictions and the state's bits.
type Left = (Metrics, Metrics, Vec<u32>, [Vec<u32>; 3]);

fn trained(path: PathChoice, model: &Model, examples: &Examples, steps: &[StepState]) -> Vec<Left> {
    let with = |engine: CudaEngine| {
        let mut engine = CudaEngine::with_path(engine.into_cuda(), path);
        load(&mut engine, model, examples);
        // A part of the steps by itself, as a training that polls does.
        engine.train(&steps[..1]).unwrap();
        engine.train(&steps[1..]).unwrap();
        let metrics = engine.poll(true).unwrap();
        let evaluated = engine.evaluate(Part::Test, 4).unwrap();
        let predicted = engine.predict(&examples.x, examples.rows()).unwrap();
        let predicted = predicted.iter().map(|p| p.to_bits()).collect();
        (metrics, evaluated, predicted, bits(&engine.read_state().unwrap()))
    };
    engines().into_iter().map(with).collect()
}

/// The fused path and the one an operation a kernel: every sum has the same order (but W's gradient for E above 32), so
/// every bit is the same. Shapes that
/// pad, tokens that repeat, batches down to one row, and more rows than a warp has lanes.
#[test]
fn the_fused_path_has_the_bits_of_the_unfused_one() {
    // rows, batch, T, V, E, H, C
    for (rows, batch, t, vocab, embed, hidden, classes) in [
        (1, 1, 1, 3, 1, 1, 2),
        (9, 5, 7, 9, 3, 5, 3),
        (40, 32, 7, 30, 16, 31, 2),
        (35, 33, 3, 5, 19, 32, 40),
        (7, 4, 32, 60, 33, 20, 2),
        (6, 5, 7, 50, 64, 9, 2),
        (9, 5, 7, 50, 16, 33, 2),
        (5, 3, 9, 33, 20, 64, 5),
    ] {
        let (model, examples) =
            (model(vocab, embed, hidden, classes), examples(rows, t, vocab as u32, classes as u32));
        let batch = batch as u32;
        let mut all = steps(rows as u32, batch, 0, 0.003);
        let again = steps(rows as u32, batch, all.len() as u64, 0.002);
        all.extend(again);
        all[0].weight_decay = 0.1;
        {
            let run = |path| trained(path, &model, &examples, &all);
            let (fused, unfused) = (run(PathChoice::Best), run(PathChoice::Unfused));
            println!(
                "T {t}, V {vocab}, E {embed}, H {hidden}, C {classes}, batches of {batch}: compared on {} images",
                fused.len()
            );
            for (fused, unfused) in fused.iter().zip(&unfused) {
                if embed > 32 {
                    // W's gradient is summed in another order: a few roundings of 6e-8, in steps of at most 0.003.
                    let floats = |bits: &[u32]| bits.iter().map(|&b| f32::from_bits(b)).collect::<Vec<_>>();
                    let worst = apart(&floats(&fused.3[0]), &floats(&unfused.3[0]));
                    println!("E {embed}: parameters within {worst:.1e}");
                    assert!(worst <= 2e-6 && (fused.1.loss() - unfused.1.loss()).abs() < 1e-6, "{worst}");
                    continue;
                }
                assert_eq!(fused.0, unfused.0, "metrics, E {embed}, H {hidden}");
                assert_eq!(fused.1, unfused.1, "evaluation, E {embed}, H {hidden}");
                assert!(fused.2 == unfused.2, "predictions, E {embed}, H {hidden}");
                assert!(fused.3 == unfused.3, "parameters or moments, E {embed}, H {hidden}");
            }
        }
    }
}

/// Many steps in one launch, by blocks that wait for each other, and the two kernels of each step: the same bits. Rows of the table
/// that come in no step, in each, and more often than a chunk of their gradients holds; chunks of several rows; more blocks than
/// rows; batches of different sizes and of none, more steps than a launch has, steps that clip and take another path between them.
#[test]
fn many_steps_in_one_launch_have_the_bits_of_single_ones() {
    const CLASS_WEIGHTS: [f32; 3] = [0.5, 2.0, 1.25];
    // T, V, E, H, C, clipping, steps, rows of the batches
    for (t, vocab, embed, hidden, classes, clips, count, sizes) in [
        (1, 3, 1, 1, 2, false, 3, &[1][..]),
        (2, 40, 5, 7, 3, false, 130, &[2, 1, 0, 3]),
        (7, 500, 16, 32, 2, true, 9, &[32, 8]),
        (9, 2, 64, 9, 3, false, 3, &[32, 30]),
        (9, 50, 61, 7, 2, false, 2, &[32, 31]),
        (6, 90, 33, 20, 2, true, 6, &[5, 2]),
        (5, 2000, 17, 11, 3, false, 5, &[4]),
        (4, 30, 16, 33, 2, false, 5, &[5, 3]),
        (3, 50, 30, 64, 3, false, 4, &[2, 6]),
    ] {
        let rows = 45;
        let (model, examples) =
            (model(vocab, embed, hidden, classes), examples(rows, t, vocab as u32, classes as u32));
        let mut all = steps_of(sizes.iter().copied().cycle().take(count), rows as u32, 0, 0.004);
        all[count / 2].weight_decay = 0.1;
        if clips {
            all[count / 3].clip_norm = 0.05;
        }
        let run = |path| -> Vec<_> {
            let with = |engine: CudaEngine| {
                let mut engine = CudaEngine::with_path(engine.into_cuda(), path);
                load_weighted(&mut engine, &model, &examples, (classes == 3).then_some(&CLASS_WEIGHTS));
                // A part of the steps by itself, as a training that polls does.
                engine.train(&all[..1]).unwrap();
                engine.train(&all[1..]).unwrap();
                let left = (engine.poll(true).unwrap(), engine.evaluate(Part::Test, 4).unwrap());
                (
                    left,
                    bits(&engine.read_state().unwrap()),
                    engine.graphs_recorded(),
                    engine.cuda().steps_fit(32),
                )
            };
            engines().into_iter().map(with).collect()
        };
        let (single, together) = (run(PathChoice::Best), run(PathChoice::Steps));
        for (single, together) in single.iter().zip(&together) {
            // Graphs of the steps that clip, and no others: the kernel of many steps did the rest, if the device has room for it.
            let has_room = together.3;
            assert!(!has_room || (together.2 > 0) == clips, "{} graphs, E {embed}, H {hidden}", together.2);
            assert_eq!(single.0, together.0, "metrics, E {embed}, H {hidden}");
            assert!(single.1 == together.1, "parameters or moments, E {embed}, H {hidden}");
        }
        println!(
            "T {t}, V {vocab}, E {embed}, H {hidden}, batches of {sizes:?}: compared on {} images, room for the blocks: {}",
            together.len(),
            together.iter().all(|left| left.3)
        );
    }
    let engine = engines().pop().unwrap();
    assert!(!engine.cuda().is_software() || engine.cuda().steps_fit(32));
}

/// The kernels whose blocks wait for each other, and those of one time step: the same order of every sum. Widths at the edges of a
/// piece of the sums, of a block and of both kernels; batches of a part of a tile, of several tiles, of several groups; the device's own
/// choice for each shape is one of the two.
#[test]
fn the_persistent_path_has_the_bits_of_the_cells() {
    // rows, batch, T, V, E, H, C
    for (rows, batch, t, vocab, embed, hidden, classes) in [
        (3, 2, 1, 3, 1, 1, 2),
        (9, 5, 4, 9, 3, 16, 3),
        (6, 6, 3, 30, 7, 33, 2),
        (7, 4, 3, 30, 16, 97, 2),
        (45, 45, 2, 20, 5, 129, 3),
        (5, 3, 5, 20, 3, 160, 2),
        (3, 3, 2, 20, 2, 256, 2),
        (9, 9, 3, 20, 3, 257, 2),
        (2, 2, 2, 20, 2, 509, 2),
    ] {
        let (model, examples) =
            (model(vocab, embed, hidden, classes), examples(rows, t, vocab as u32, classes as u32));
        let batch = batch as u32;
        let mut all = steps(rows as u32, batch, 0, 0.003);
        // A step of a large model takes seconds in software.
        if hidden < 256 {
            let again = steps(rows as u32, batch, all.len() as u64, 0.002);
            all.extend(again);
            all[1].clip_norm = 0.05;
        }
        let run = |path| trained(path, &model, &examples, &all);
        let cells = run(PathChoice::Cells);
        let choices = [PathChoice::Persistent, PathChoice::Best];
        for choice in choices.into_iter().take(if (129..200).contains(&hidden) { 2 } else { 1 }) {
            for (persistent, cells) in run(choice).iter().zip(&cells) {
                assert_eq!(persistent.0, cells.0, "metrics, H {hidden}, {choice:?}");
                assert_eq!(persistent.1, cells.1, "evaluation, H {hidden}, {choice:?}");
                assert!(persistent.2 == cells.2, "predictions, H {hidden}, {choice:?}");
                assert!(persistent.3 == cells.3, "parameters or moments, H {hidden}, {choice:?}");
            }
        }
        println!("T {t}, E {embed}, H {hidden}, batches of {batch}: compared on {} images", cells.len());
    }
    let engine = engines().pop().unwrap();
    let units = engine.cuda().persistent_units();
    println!("persistent kernels up to H {units}");
    assert!(!engine.cuda().is_software() || units == 512, "{units}");
}

/// Widths that no load by fours and no warp fits, sequences of one time step, batches of one row on, and of different
/// sizes within a graph; where there are class weights, rows that count more than others.
#[test]
fn the_fused_path_follows_the_oracle_at_odd_shapes() {
    // 21 steps of at most 0.002 each, by gradients that are off by less than 1e-4 of themselves.
    const TOLERANCE: f32 = 4e-6;
    const CLASS_WEIGHTS: [f32; 5] = [0.5, 2.0, 1.25, 0.75, 3.0];
    // T, V, E, H, C, weighted, rows of the batches
    for (t, vocab, embed, hidden, classes, weighted, sizes) in [
        (1, 3, 1, 2, 2, false, &[1][..]),
        (1, 40, 7, 3, 37, true, &[3, 1, 2]),
        (2, 9, 15, 1, 3, false, &[2, 1, 5, 3]),
        (4, 30, 13, 17, 3, true, &[3, 1, 7, 4]),
        (5, 30, 17, 29, 2, false, &[1]),
        (3, 60, 30, 31, 6, true, &[5, 5, 1, 2]),
        (6, 20, 33, 5, 2, true, &[2, 1, 3, 4]),
        (3, 20, 50, 27, 4, false, &[1, 3, 2, 5]),
        (2, 30, 63, 32, 2, true, &[3, 2, 1, 4]),
        (5, 20, 1, 33, 2, true, &[1, 2, 3, 4]),
        (3, 30, 16, 47, 7, false, &[3, 1, 4, 2]),
        (1, 30, 21, 62, 2, true, &[2, 1, 3, 5]),
        (4, 20, 31, 63, 3, false, &[1]),
    ] {
        let (model, examples) =
            (model(vocab, embed, hidden, classes), examples(11, t, vocab as u32, classes as u32));
        let weights: Option<Vec<f32>> =
            weighted.then(|| CLASS_WEIGHTS.into_iter().cycle().take(classes).collect());
        let steps = steps_of(sizes.iter().copied().cycle().take(21), 11, 0, 0.002);
        let train = |engine: &mut dyn Engine| {
            load_weighted(engine, &model, &examples, weights.as_deref());
            engine.train(&steps).unwrap();
            let metrics = (engine.poll(true).unwrap(), engine.evaluate(Part::Test, 4).unwrap());
            (metrics, engine.predict(&examples.x, 11).unwrap(), engine.read_state().unwrap())
        };
        let (truth, true_predictions, true_state) = train(&mut oracle());
        for mut engine in engines() {
            let (metrics, predictions, state) = train(&mut engine);
            let worst = apart(&state.params, &true_state.params);
            println!(
                "T {t}, V {vocab}, E {embed}, H {hidden}, C {classes}, batches of {sizes:?}: parameters within {worst:.1e} on {}",
                engine.cuda().name()
            );
            // Graphs of 16, 4 and 1 steps, whatever their rows: it was the fused path.
            assert_eq!(engine.graphs_recorded(), 3, "E {embed}, H {hidden}");
            assert!(worst <= TOLERANCE, "E {embed}, H {hidden}: {worst}");
            for (found, truth) in [(metrics.0, truth.0), (metrics.1, truth.1)] {
                assert_eq!((found.batches, found.examples), (truth.batches, truth.examples));
                assert!(
                    (found.loss() - truth.loss()).abs() < 2e-6,
                    "E {embed}, H {hidden}: {found:?} {truth:?}"
                );
                // Probabilities of a model that has hardly learnt lie close together: a tie may break either way.
                assert!(
                    found.correct.abs_diff(truth.correct) <= 1,
                    "E {embed}, H {hidden}: {found:?} {truth:?}"
                );
            }
            let worst = apart(&predictions, &true_predictions);
            assert!(worst < 2e-6, "E {embed}, H {hidden}: predictions off by {worst}");
        }
    }
}

/// The fused path has a place for each row's sums, and no more than 512: larger batches take a kernel an operation, and so
/// do all that follow them.
#[test]
fn batches_of_more_rows_than_the_fused_path_has_places_for() {
    // Eight steps of at most 0.002 each, by sums over up to 1025 rows that are off by less than 1e-4 of themselves.
    const TOLERANCE: f32 = 1e-6;
    let (model, examples) = (model(30, 5, 7, 3), examples(1026, 2, 30, 3));
    // The batches of each call of `train`, and how many graphs have been recorded after it.
    let limit = (&[512, 512, 1, 0][..], 1); // one graph of four steps
    let beyond = (&[513, 513, 40][..], 3); // and one for each size
    let after = (&[40][..], 3);
    let at_once = (&[1025][..], 1);
    for calls in [&[limit, beyond, after][..], &[at_once]] {
        let mut t = 0;
        let mut numbered = Vec::new();
        for &(sizes, graphs) in calls {
            numbered.push((steps_of(sizes.iter().copied(), 1026, t, 0.002), graphs));
            t += sizes.len() as u64;
        }
        let mut oracle = oracle();
        load(&mut oracle, &model, &examples);
        numbered.iter().for_each(|(steps, _)| oracle.train(steps).unwrap());
        let (truth, true_state) = (oracle.poll(true).unwrap(), oracle.read_state().unwrap());
        for mut engine in engines() {
            load(&mut engine, &model, &examples);
            for (steps, graphs) in &numbered {
                engine.train(steps).unwrap();
                assert_eq!(engine.graphs_recorded(), *graphs, "{calls:?}");
            }
            let (found, state) = (engine.poll(true).unwrap(), engine.read_state().unwrap());
            let worst = apart(&state.params, &true_state.params);
            println!("batches of {calls:?}: parameters within {worst:.1e} on {}", engine.cuda().name());
            assert!(worst <= TOLERANCE, "{worst}");
            assert!((found.loss_sum - truth.loss_sum).abs() < 1e-5, "{found:?} {truth:?}");
            assert_eq!((found.batches, found.examples), (truth.batches, truth.examples));
            assert!(found.correct.abs_diff(truth.correct) <= 2, "{found:?} {truth:?}");
        }
    }
}

/// Into which calls and graphs steps are cut changes no bit: more of them than a graph holds and than the device's table
/// does, batches of all sizes and of none, one that clips between two graphs; as one call, step by step, and unfused.
#[test]
fn the_fused_path_has_the_same_bits_however_steps_are_cut() {
    // The parameters have gone 0.1 and more, by gradients that are off by less than 1e-4 of themselves, to either side.
    const TOLERANCE: f32 = 5e-6;
    let weights = [0.5, 2.0, 1.25];
    // Rows, T, V, E, H, C, the steps and their batches.
    for (rows, t, [vocab, embed, hidden, classes], count, sizes) in
        [(13, 3, [20, 6, 9, 3], 150, &[5, 1, 3, 0, 4, 2][..]), (3, 1, [3, 1, 1, 2], 1030, &[1])]
    {
        let (model, examples) =
            (model(vocab, embed, hidden, classes), examples(rows, t, vocab as u32, classes as u32));
        let mut all = steps_of(sizes.iter().copied().cycle().take(count), rows as u32, 0, 0.001);
        all[70].clip_norm = 0.01;
        let run = |engine: &mut dyn Engine, most: usize| {
            load_weighted(engine, &model, &examples, Some(&weights[..classes]));
            all.chunks(most).for_each(|steps| engine.train(steps).unwrap());
            (engine.poll(true).unwrap(), engine.read_state().unwrap())
        };
        let (truth, true_state) = run(&mut oracle(), count);
        for (mut engine, other) in engines().into_iter().zip(engines()) {
            let whole = run(&mut engine, count);
            let stepwise = run(&mut engine, 1);
            assert!(whole == stepwise, "{count} steps at once have other bits than one by one");
            let other = run(&mut unfused(other), count);
            assert!(whole == other, "{count} steps have other bits where an operation is a kernel");
            let worst = apart(&whole.1.params, &true_state.params);
            println!("{count} steps: parameters within {worst:.1e} on {}", engine.cuda().name());
            assert!(worst <= TOLERANCE, "{worst}");
            assert!((whole.0.loss() - truth.loss()).abs() < 1e-5, "{:?} {truth:?}", whole.0);
        }
    }
}

/// A step that may have to clip sums its gradients in an arena before Adam, by other kernels, and every sum has the same
/// order there: with a limit that no gradient reaches, every bit is the same.
#[test]
fn a_limit_that_nothing_reaches_changes_no_bit() {
    for (embed, hidden) in [(5, 7), (19, 33), (40, 20), (70, 3), (6, 99), (5, 130)] {
        // Each of the few words is in most rows, often more than once.
        let (model, examples) = (model(9, embed, hidden, 3), examples(19, 6, 9, 3));
        let run = |engine: CudaEngine, clip_norm: f32| {
            let mut engine = unfused(engine);
            load(&mut engine, &model, &examples);
            let steps: Vec<StepState> =
                steps(19, 8, 0, 0.003).into_iter().map(|step| StepState { clip_norm, ..step }).collect();
            engine.train(&steps).unwrap();
            (engine.poll(true).unwrap(), engine.read_state().unwrap())
        };
        for (plain, limited) in engines().into_iter().zip(engines()) {
            println!("E {embed}, H {hidden} on {}", plain.cuda().name());
            let (plain, limited) = (run(plain, 0.0), run(limited, 1e30));
            assert!(plain == limited, "E {embed}, H {hidden}: other bits with a limit of 1e30");
        }
    }
}

/// A hundred and fifty steps on the embedded reviews, step by step beside the oracle.
#[test]
fn losses_of_150_steps_on_the_embedded_reviews_track_the_oracle() {
    let options =
        DataOptions { source: Source::Sample, num_words: 500, maxlen: Some(12), ..DataOptions::default() };
    let dataset = data::load(&options, None).unwrap();
    let rows: Vec<u32> = (0..1200).collect();
    let model = model(500, 8, 16, 2);
    let loss_of_each_step = |engine: &mut dyn Engine| -> Vec<f64> {
        let parts = Parts { train: Some(&dataset.train), ..Parts::default() };
        engine.load(&model, &TrainState::new(model.init(0)), AdamConfig::default(), parts).unwrap();
        engine.set_order(&rows, Metrics::default()).unwrap();
        let mut before = 0.0;
        steps(1200, 8, 0, 0.001)
            .iter()
            .map(|step| {
                engine.train(std::slice::from_ref(step)).unwrap();
                let sum = engine.poll(true).unwrap().loss_sum;
                let loss = sum - before;
                before = sum;
                loss
            })
            .collect()
    };
    let expected = loss_of_each_step(Device::Reference.engine(1).unwrap().as_mut());
    assert_eq!(expected.len(), 150);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert!(
        mean(&expected[100..]) < mean(&expected[..50]) - 0.005,
        "the oracle does not learn: {expected:?}"
    );
    let mut engine = engines().into_iter().next();
    let Some(engine) = &mut engine else { return };
    let found = loss_of_each_step(engine);
    let worst = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    println!("150 steps: losses within {worst:.1e} of the oracle's, on {}", engine.cuda().name());
    assert!(found.iter().all(|loss| loss.is_finite()) && worst <= 1e-4, "off by {worst}");
}

/// SHA-256 over the bits of parameters, moments and metrics after three steps of the reference shape but for 500 words:
/// the strict arithmetic gives them on every device. A change of the kernels' order of sums changes it, nothing else
/// may.
const THREE_STEPS: &str = "a2da854d75126b665d976a0296e7b7acb6f1896e4d5cb78400db9a932e76fb62";

#[test]
fn three_training_steps_have_the_committed_bits() {
    let (model, examples) = (model(500, 16, 32, 2), examples(80, 32, 500, 2));
    for mut engine in engines().into_iter().chain(engines().into_iter().map(unfused)) {
        load(&mut engine, &model, &examples);
        engine.train(&steps(80, 32, 0, 0.001)).unwrap();
        let (metrics, state) = (engine.poll(true).unwrap(), engine.read_state().unwrap());
        let mut digest = Sha256::new();
        bits(&state).iter().flatten().for_each(|word| digest.update(word.to_le_bytes()));
        digest.update(metrics.loss_sum.to_le_bytes());
        digest.update(metrics.correct.to_le_bytes());
        let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        println!("three steps, loss sum {}: {digest} on {}", metrics.loss_sum, engine.cuda().name());
        assert_eq!(digest, THREE_STEPS, "{}", engine.cuda().name());
    }
}

#[test]
fn the_order_of_an_epoch_is_the_one_that_was_set() {
    let (model, examples) = (model(40, 4, 6, 2), examples(13, 3, 40, 2));
    let order: Vec<u32> = [5, 0, 12, 7, 3, 9, 1, 11, 2, 10, 4, 8, 6].to_vec();
    for mut engine in engines().into_iter().chain(engines().into_iter().map(unfused)) {
        let mut states = Vec::new();
        for engine in [&mut engine as &mut dyn Engine, cpu().as_mut()] {
            load(engine, &model, &examples);
            engine.set_order(&order, Metrics::default()).unwrap();
            engine.train(&steps(13, 4, 0, 0.01)).unwrap();
            states.push((engine.poll(true).unwrap(), engine.read_state().unwrap()));
        }
        let (found, expected) = (&states[0], &states[1]);
        assert_eq!(found.0.correct, expected.0.correct);
        assert!((found.0.loss_sum - expected.0.loss_sum).abs() < 1e-5, "{found:?} {expected:?}");
        let worst = apart(&found.1.params, &expected.1.params);
        println!("a shuffled order: parameters within {worst:.1e} of the CPU's on {}", engine.cuda().name());
        assert!(worst < 1e-5, "{worst}");
    }
}

// ---------------------------------------------------------------- evaluation and prediction

#[test]
fn evaluation_and_prediction_agree_with_the_cpu() {
    for (hidden, rows) in [(7, 37), (33, 1030), (130, 21)] {
        let (model, examples) = (model(60, 5, hidden, 3), examples(rows, 5, 60, 3));
        let mut cpu = cpu();
        load(cpu.as_mut(), &model, &examples);
        for mut engine in engines() {
            load(&mut engine, &model, &examples);
            for part in [Part::Train, Part::Validation, Part::Test] {
                for batch in [1, 8, 2000] {
                    let (found, expected) =
                        (engine.evaluate(part, batch).unwrap(), cpu.evaluate(part, batch).unwrap());
                    assert_eq!(
                        (found.batches, found.examples),
                        (expected.batches, expected.examples),
                        "{part:?} in batches of {batch}"
                    );
                    // An untrained model's probabilities lie close together: a tie may break either way.
                    assert!(found.correct.abs_diff(expected.correct) <= 1 + expected.examples / 200);
                    assert!((found.loss() - expected.loss()).abs() < 1e-6, "{found:?} {expected:?}");
                }
            }
            let found = engine.predict(&examples.x, rows).unwrap();
            let worst = apart(&found, &cpu.predict(&examples.x, rows).unwrap());
            println!(
                "H {hidden}: {rows} predictions within {worst:.1e} of the CPU's on {}",
                engine.cuda().name()
            );
            assert!(worst < 1e-6, "{worst}");
            assert!(engine.predict(&[], 0).unwrap().is_empty());
        }
    }
}

#[test]
fn wrong_calls_are_refused_as_on_the_cpu() {
    let (model, examples) = (model(40, 4, 6, 2), examples(13, 3, 40, 2));
    for mut engine in engines() {
        let mut messages = Vec::new();
        for engine in [&mut engine as &mut dyn Engine, cpu().as_mut()] {
            let mut said = vec![engine.train(&[]).map(|()| "done").unwrap_err().to_string()];
            load(engine, &model, &examples);
            let mut bad = examples.clone();
            bad.x[7] = 40;
            let parts = Parts { train: Some(&bad), ..Parts::default() };
            let state = TrainState::new(model.init(0));
            said.push(engine.load(&model, &state, AdamConfig::default(), parts).unwrap_err().to_string());
            load(engine, &model, &examples);
            said.push(engine.train(&[StepState::new(1, 0.1, 12, 2)]).unwrap_err().to_string());
            engine.set_order(&[0, 13], Metrics::default()).unwrap();
            said.push(engine.train(&[StepState::new(1, 0.1, 0, 2)]).unwrap_err().to_string());
            said.push(engine.predict(&[1, 2, 3], 2).unwrap_err().to_string());
            let short = TrainState::new(vec![0.0; 3]);
            said.push(engine.write_state(&short).unwrap_err().to_string());
            // And it goes on working.
            load(engine, &model, &examples);
            engine.train(&steps(13, 4, 0, 0.01)).unwrap();
            assert_eq!(engine.poll(true).unwrap().batches, 4);
            messages.push(said);
        }
        println!("{} refusals like the CPU's on {}", messages[0].len(), engine.cuda().name());
        assert_eq!(messages[0], messages[1]);
    }
}

// ---------------------------------------------------------------- arithmetic

/// Distance from the true value in units of the last place of the f32 next to it.
fn ulps(found: f32, truth: f64) -> f64 {
    let nearest = truth as f32;
    if nearest.is_infinite() || found.is_infinite() {
        return if nearest == found { 0.0 } else { f64::INFINITY };
    }
    let exponent = (nearest.abs().to_bits() >> 23).max(1) as i32 - 127 - 23;
    (f64::from(found) - truth).abs() / 2f64.powi(exponent)
}

/// The kernels' own exp, sigmoid, tanh and log over all of f32: every 2053th bit pattern (a prime: two million values in
/// every binade), and the places where something changes.
#[test]
fn activations_are_within_5_ulp() {
    let mut xs = vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, 1.0, -1.0];
    xs.extend([
        f32::MIN_POSITIVE,
        1e-45,
        -1e-45,
        88.722_84,
        88.7228,
        -87.336_55,
        -103.972_08,
        -104.0,
        10.0,
        -10.0,
    ]);
    xs.extend((0..=u32::MAX).step_by(2053).map(f32::from_bits));
    for cuda in device::images() {
        let x = cuda.upload(&xs.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()).unwrap();
        for (activation, truth) in [
            (Activation::Exp, f64::exp as fn(f64) -> f64),
            (Activation::Sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
            (Activation::Tanh, f64::tanh),
            (Activation::Log, f64::ln),
        ] {
            let mut out = cuda.upload(&vec![f64::NAN; xs.len()]).unwrap();
            cuda.activate(activation, &x, &mut out).unwrap();
            let found = cuda.download(&out).unwrap();
            let mut worst = (0.0, 0.0);
            for (&x, &found) in xs.iter().zip(&found) {
                let (found, truth) = (found as f32, truth(f64::from(x)));
                if truth.is_nan() {
                    assert!(found.is_nan(), "{activation:?}({x}) = {found}");
                    continue;
                }
                let error = ulps(found, truth);
                if error.is_nan() || error > worst.0 {
                    worst = (error, x);
                }
            }
            println!("{activation:?}: worst {:.3} ulp at {:e} on {}", worst.0, worst.1, cuda.name());
            assert!(worst.0 <= 5.0, "{activation:?} is {} ulp off at {:e}", worst.0, worst.1);
        }
        // Signs of zeros and limits, which a distance does not see.
        let x = cuda.upload(&[-0.0, 0.0, f64::INFINITY, f64::NEG_INFINITY]).unwrap();
        let mut out = cuda.upload(&[0.5; 4]).unwrap();
        cuda.activate(Activation::Tanh, &x, &mut out).unwrap();
        let found = cuda.download(&out).unwrap();
        assert!(found[0] == 0.0 && found[0].is_sign_negative() && found[1].is_sign_positive());
        assert_eq!(found[2..], [1.0, -1.0]);
    }
}

#[test]
fn names_say_what_ran() {
    for cuda in device::images() {
        let info = cuda.info();
        println!("{info:?}");
        assert_eq!(info.device, "cuda:0");
        assert_eq!(cuda.is_software(), info.name.starts_with("softcuda"), "{info:?}");
        assert!(info.executed.contains(&cuda.image().to_string()), "{info:?}");
    }
}
