//! Our side of `scripts/peers`: epochs, evaluations and inference at any shape through the engine, as JSON lines, in
//! the same protocol as the scripts under benches/peers. One file prepares the data for all of them.
//!
//! ```text
//! cargo bench --bench peer_shapes -- --what train_epoch,evaluate --repeat 3
//! cargo bench --bench peer_shapes -- --hidden 128 --embed 128 --batch 64 --time 200 --steps 20 --what train_step
//! ```
//!
//! `--prepare NAME` writes NAME.npz (prepared ids, labels, the order of each epoch) and NAME-weights.npz (Keras'
//! layout and initialisers), so that every peer starts from the same numbers and sees the same batches.

use clap::Parser;
use recurve::backend::{AdamConfig, Device, Engine, Part, Parts, StepState, TrainState};
use recurve::data::npz::{NpzArchive, Values};
use recurve::data::{DataOptions, Examples, Source, batch};
use recurve::interchange::Weights;
use recurve::metrics::Metrics;
use recurve::model::{Model, ModelConfig};
use recurve::rng::{Purpose, Rng};
use recurve::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Orders that are prepared; epoch k reads order k modulo this.
const ORDERS: usize = 16;
/// Learning rate: Adam's default.
const LR: f32 = 0.001;

#[derive(Parser, Clone)]
struct Options {
    /// auto, cpu, reference, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Threads; 0 is one for each core
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// There is one variant: the engine
    #[arg(long, default_value = "engine")]
    variant: String,
    #[arg(long, default_value_t = 32)]
    batch: usize,
    #[arg(long, default_value_t = 32)]
    time: usize,
    #[arg(long, default_value_t = 16)]
    embed: usize,
    #[arg(long, default_value_t = 32)]
    hidden: usize,
    #[arg(long, default_value_t = 10_000)]
    vocab: usize,
    /// Training rows of synthetic data: this many batches; 0 for 25,000 rows and as many to test on
    #[arg(long, default_value_t = 0)]
    steps: usize,
    /// The same as --repeat, for train_epoch
    #[arg(long)]
    epochs: Option<usize>,
    /// train_epoch, train_step, evaluate, inference: a list with commas
    #[arg(long, default_value = "train_epoch")]
    what: String,
    /// Rows of a call of inference
    #[arg(long, default_value_t = 1)]
    rows: usize,
    /// Measurements of each
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Answer requests from standard input instead, one JSON line each
    #[arg(long)]
    worker: bool,
    /// A file that --prepare wrote
    #[arg(long)]
    data: Option<PathBuf>,
    /// A file that --prepare wrote
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Write PREFIX.npz and PREFIX-weights.npz and end
    #[arg(long, value_name = "PREFIX")]
    prepare: Option<PathBuf>,
    /// Keras' imdb.npz, to prepare it instead of synthetic rows
    #[arg(long)]
    imdb: Option<PathBuf>,
    /// What `cargo bench` passes
    #[arg(long, hide = true)]
    bench: bool,
    /// What `cargo bench -- --test` passes: check the answer at a small shape, time nothing
    #[arg(long, hide = true)]
    test: bool,
}

#[derive(Deserialize)]
struct Request {
    what: String,
    #[serde(default)]
    rows: usize,
}

#[derive(Serialize)]
struct Shape {
    batch: usize,
    time: usize,
    embed: usize,
    hidden: usize,
    vocab: usize,
}

#[derive(Serialize)]
struct Answer<'a> {
    peer: &'static str,
    version: &'static str,
    variant: &'a str,
    device: &'a str,
    executed: &'a str,
    threads: usize,
    shape: Shape,
    what: &'a str,
    seconds: Vec<f64>,
    loss: f64,
    accuracy: f64,
    /// Steps of a training, rows of a call of inference.
    count: usize,
    /// Of a call of inference: median and 99th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<[f64; 2]>,
}

/// What one measurement gives.
struct Measured {
    seconds: f64,
    loss: f64,
    accuracy: f64,
    count: usize,
    latency: Option<[f64; 2]>,
}

struct Prepared {
    train: Examples,
    test: Examples,
    orders: Vec<Vec<u32>>,
}

/// Rows as skewed as words are; the label says whether words of one half of the vocabulary outnumber the others.
fn synthetic(rows: usize, t: usize, vocab: usize, seed: u32) -> Examples {
    let mut rng = Rng::new(1, Purpose::User, seed);
    let skewed = |u: f64| 3 + (u.powi(3) * (vocab.saturating_sub(4)) as f64) as u32;
    let x: Vec<u32> = (0..rows * t).map(|_| skewed(rng.uniform())).collect();
    let votes = |row: &[u32]| row.iter().filter(|&&id| id.wrapping_mul(2_654_435_761) >> 31 == 1).count();
    Examples { y: x.chunks(t).map(|row| u32::from(2 * votes(row) > t)).collect(), x, t }
}

fn narrow(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::Failed(format!("{n} is more than 2^32")))
}

fn prepare(options: &Options) -> Result<Prepared> {
    let (train, test, buffer) = match &options.imdb {
        Some(path) => {
            let data = recurve::data::load(
                &DataOptions {
                    source: Source::File(path.clone()),
                    num_words: options.vocab,
                    maxlen: Some(options.time),
                    ..Default::default()
                },
                None,
            )?;
            let test =
                data.test.ok_or_else(|| Error::Failed(format!("{} has no test rows", path.display())))?;
            (data.train, test, 10_000)
        }
        None if options.steps == 0 => {
            let part = |seed| synthetic(25_000, options.time, options.vocab, seed);
            (part(0), part(1), 10_000)
        }
        None => {
            let rows = options.steps * options.batch;
            let part = |rows, seed| synthetic(rows, options.time, options.vocab, seed);
            // The file's order: these rows are random already.
            (part(rows, 0), part(options.batch.max(1024), 1), 0)
        }
    };
    let rows = narrow(train.rows())?;
    let orders = (0..ORDERS as u32).map(|epoch| batch::epoch_order(rows, buffer, 0, epoch)).collect();
    Ok(Prepared { train, test, orders })
}

/// A `.npy` file of 32-bit integers.
fn npy(shape: &str, values: impl Iterator<Item = u32>) -> Vec<u8> {
    let mut header = format!("{{'descr': '<i4', 'fortran_order': False, 'shape': ({shape}), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values.flat_map(u32::to_le_bytes));
    bytes
}

fn write_prepared(options: &Options, prefix: &Path) -> Result<()> {
    let Prepared { train, test, orders } = prepare(options)?;
    let name = |suffix: &str| PathBuf::from(format!("{}{suffix}", prefix.display()));
    let path = name(".npz");
    let failed =
        |error: std::io::Error| Error::Failed(format!("{} cannot be written: {error}", path.display()));
    let mut zip = zip::ZipWriter::new(File::create(&path).map_err(failed)?);
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let rows = |n: usize, t: usize| format!("{n}, {t}");
    let flat = |n: usize| format!("{n},");
    let arrays = [
        ("x_train", npy(&rows(train.rows(), train.t), train.x.iter().copied())),
        ("y_train", npy(&flat(train.rows()), train.y.iter().copied())),
        ("x_test", npy(&rows(test.rows(), test.t), test.x.iter().copied())),
        ("y_test", npy(&flat(test.rows()), test.y.iter().copied())),
        ("orders", npy(&rows(orders.len(), train.rows()), orders.iter().flatten().copied())),
    ];
    for (name, bytes) in arrays {
        zip.start_file(format!("{name}.npy"), stored).map_err(|e| failed(e.into()))?;
        zip.write_all(&bytes).map_err(failed)?;
    }
    zip.finish().map_err(|e| failed(e.into()))?;
    let (model, params) = initial(options)?;
    Weights { model, params }.save(&name("-weights.npz"))
}

fn read_prepared(path: &Path) -> Result<Prepared> {
    let mut archive = NpzArchive::open(path)?;
    let mut read = |name: &str| -> Result<(Vec<usize>, Vec<u32>)> {
        let array = archive.read(name)?;
        let Values::Int(values) = array.values else {
            return Err(archive.error(name, "not integers"));
        };
        let values =
            values.into_iter().map(|x| u32::try_from(x).map_err(|_| archive.error(name, "negative")));
        Ok((array.shape, values.collect::<Result<_>>()?))
    };
    let mut part = |x: &str, y: &str| -> Result<Examples> {
        let (shape, x) = read(x)?;
        let t = shape.get(1).copied().unwrap_or(1);
        Ok(Examples { x, y: read(y)?.1, t })
    };
    let train = part("x_train", "y_train")?;
    let test = part("x_test", "y_test")?;
    let orders = read("orders")?.1.chunks(train.rows().max(1)).map(<[u32]>::to_vec).collect();
    Ok(Prepared { train, test, orders })
}

fn initial(options: &Options) -> Result<(Model, Vec<f32>)> {
    if let Some(path) = &options.weights {
        let Weights { model, params } = Weights::load(path)?;
        return Ok((model, params));
    }
    let Options { vocab, embed, hidden, .. } = *options;
    let model = Model::new(ModelConfig { vocab, embed, hidden, ..Default::default() })?;
    let params = model.init(0);
    Ok((model, params))
}

struct Bench {
    options: Options,
    data: Prepared,
    engine: Box<dyn Engine>,
    epoch: usize,
    t: u64,
}

impl Bench {
    fn new(options: &Options) -> Result<Self> {
        let data = match &options.data {
            Some(path) => read_prepared(path)?,
            None => prepare(options)?,
        };
        let (model, params) = initial(options)?;
        let mut engine = options.device.engine(options.threads)?;
        let parts = Parts { train: Some(&data.train), test: Some(&data.test), ..Parts::default() };
        engine.load(&model, &TrainState::new(params), AdamConfig::default(), parts)?;
        Ok(Self { options: options.clone(), data, engine, epoch: 0, t: 0 })
    }

    fn measure(&mut self, what: &str, rows: usize) -> Result<Measured> {
        match what {
            "train_epoch" => self.train(self.data.train.rows()),
            "train_step" => {
                let rows = match self.options.steps {
                    0 => self.data.train.rows(),
                    steps => (steps * self.options.batch).min(self.data.train.rows()),
                };
                let measured = self.train(rows)?;
                Ok(Measured { seconds: measured.seconds / measured.count as f64, ..measured })
            }
            "evaluate" => {
                let begun = Instant::now();
                let metrics = self.engine.evaluate(Part::Test, self.options.batch)?;
                let count = self.data.test.rows();
                Ok(Measured::new(begun.elapsed().as_secs_f64(), metrics, count))
            }
            "inference" => self.infer(rows.max(1)),
            other => Err(Error::Failed(format!(
                "there is no measurement {other:?}; there are train_epoch, train_step, evaluate, inference"
            ))),
        }
    }

    /// One pass over the first `rows` rows of the next order.
    fn train(&mut self, rows: usize) -> Result<Measured> {
        let batch = self.options.batch;
        let begun = Instant::now();
        self.engine.set_order(&self.data.orders[self.epoch % self.data.orders.len()], Metrics::default())?;
        let mut steps = Vec::with_capacity(rows.div_ceil(batch));
        for start in (0..rows).step_by(batch) {
            self.t += 1;
            steps.push(StepState::new(self.t, LR, narrow(start)?, narrow(batch.min(rows - start))?));
        }
        self.engine.train(&steps)?;
        let metrics = self.engine.poll(true)?;
        let seconds = begun.elapsed().as_secs_f64();
        self.epoch += 1;
        Ok(Measured::new(seconds, metrics, steps.len()))
    }

    /// Calls with `rows` rows for a third of a second, through the test rows; loss and accuracy of the first 1024.
    fn infer(&mut self, rows: usize) -> Result<Measured> {
        let test = &self.data.test;
        let t = test.t;
        let rows = rows.min(test.rows());
        let known = test.rows().min(1024);
        let probabilities = self.engine.predict(&test.x[..known * t], known)?;
        let mut metrics = Metrics::default();
        let classes = probabilities.len() / known;
        let (losses, hits): (Vec<f64>, Vec<f64>) = probabilities
            .chunks(classes)
            .zip(&test.y)
            .map(|(p, &y)| {
                let hit = recurve::metrics::argmax(p) == y as usize;
                (-f64::from(p[y as usize]).ln(), f64::from(u8::from(hit)))
            })
            .unzip();
        metrics.add_batch(&losses, &hits);

        let mut start = 0;
        let mut call = |engine: &mut dyn Engine| -> Result<f64> {
            if start + rows > test.rows() {
                start = 0;
            }
            let begun = Instant::now();
            std::hint::black_box(engine.predict(&test.x[start * t..(start + rows) * t], rows)?);
            start += rows;
            Ok(begun.elapsed().as_secs_f64())
        };
        for _ in 0..3 {
            call(self.engine.as_mut())?;
        }
        let mut calls = Vec::new();
        let begun = Instant::now();
        while begun.elapsed().as_secs_f64() < 0.3 || calls.len() < 3 {
            calls.push(call(self.engine.as_mut())?);
        }
        let mean = calls.iter().sum::<f64>() / calls.len() as f64;
        calls.sort_by(f64::total_cmp);
        let latency = Some([calls[calls.len() / 2], calls[calls.len() * 99 / 100]]);
        Ok(Measured { latency, ..Measured::new(mean, metrics, rows) })
    }

    fn print(&self, what: &str, measured: &Measured) -> Result<()> {
        let info = self.engine.info();
        let Options { batch, time, embed, hidden, vocab, .. } = self.options;
        let answer = Answer {
            peer: "recurve",
            version: env!("CARGO_PKG_VERSION"),
            variant: &self.options.variant,
            device: &info.device,
            executed: &info.executed,
            threads: info.threads,
            shape: Shape { batch, time, embed, hidden, vocab },
            what,
            seconds: vec![measured.seconds],
            loss: measured.loss,
            accuracy: measured.accuracy,
            count: measured.count,
            latency: measured.latency,
        };
        let line = serde_json::to_string(&answer).map_err(|e| Error::Failed(e.to_string()))?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(Error::io("standard output", "write"))
    }
}

impl Measured {
    fn new(seconds: f64, metrics: Metrics, count: usize) -> Self {
        // Nothing measured has no loss; JSON has no NaN.
        let (loss, accuracy) =
            if metrics.batches == 0 { (0.0, 0.0) } else { (metrics.loss(), metrics.accuracy()) };
        Self { seconds, loss, accuracy, count, latency: None }
    }
}

/// At a small shape the engine's epoch, evaluation and probabilities must be the oracle's.
fn check() -> Result<()> {
    let small = Options::parse_from(["", "--steps", "3", "--batch", "7", "--time", "5", "--vocab", "50"]);
    let mut ours = Bench::new(&small)?;
    let mut oracle = Bench::new(&Options { device: Device::Reference, ..small })?;
    for what in ["train_step", "evaluate"] {
        let (found, expected) = (ours.measure(what, 1)?.loss, oracle.measure(what, 1)?.loss);
        assert!((found - expected).abs() < 1e-5, "{what}: loss {found}, the oracle's is {expected}");
    }
    println!("peer_shapes: the engine's losses are the oracle's; nothing was timed in test mode");
    Ok(())
}

fn run() -> Result<()> {
    let mut options = Options::parse();
    if options.test {
        return check();
    }
    if let Some(prefix) = &options.prepare {
        return write_prepared(&options, prefix);
    }
    options.repeat = options.epochs.unwrap_or(options.repeat);
    let mut bench = Bench::new(&options)?;
    if !options.worker {
        for what in options.what.split(',') {
            for _ in 0..options.repeat {
                let measured = bench.measure(what, options.rows)?;
                bench.print(what, &measured)?;
            }
        }
        return Ok(());
    }
    bench.print("ready", &Measured::new(0.0, Metrics::default(), 0))?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(Error::io("standard input", "read"))?;
        let request: Request =
            serde_json::from_str(&line).map_err(|e| Error::Failed(format!("{line:?} is no request: {e}")))?;
        let measured = bench.measure(&request.what, request.rows)?;
        bench.print(&request.what, &measured)?;
    }
    Ok(())
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer_shapes: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
