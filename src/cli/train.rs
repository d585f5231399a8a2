//! `recurve train`.

use super::progress::Progress;
use super::{DeviceArgs, Given, fraction, in_range, interrupted, say};
use clap::Args;
use recurve::backend::{AdamConfig, DeviceInfo, LossScale, Precision};
use recurve::checkpoint::Checkpoint;
use recurve::data::baseline::{Baselines, baselines};
use recurve::data::batch::Side;
use recurve::data::{self, DataOptions, Dataset, Source, Words};
use recurve::interchange::{Weights, load_model};
use recurve::metrics::Metrics;
use recurve::model::{Model, ModelConfig};
use recurve::run::Run;
use recurve::tensorboard::Writer;
use recurve::train::{
    ClassWeight, Ending, EpochMetrics, EpochSeconds, LrSchedule, Observer, TrainOptions, best_epoch, train,
};
use recurve::{Error, Result, files};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Arguments of `recurve train`. Defaults that come from the library are shown by clap from it.
#[derive(Args, Debug)]
pub struct TrainArgs {
    /// Data: auto, sample, imdb, or a .npz, .csv, .tsv or .jsonl file [default: auto]
    #[arg(value_name = "DATA", conflicts_with = "data")]
    source: Option<Source>,
    /// The same as DATA
    #[arg(long, value_name = "DATA")]
    data: Option<Source>,
    /// File of test rows, for raw text; without it --test-fraction of the rows are held out
    #[arg(long, value_name = "PATH")]
    test: Option<PathBuf>,
    /// Column that holds the text (CSV, TSV, JSONL)
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_column: String,
    /// Column that holds the label (CSV, TSV, JSONL)
    #[arg(long, value_name = "NAME", default_value = "label")]
    label_column: String,
    /// Share of raw-text rows held out as the test part, at least 0 and below 1
    #[arg(long, value_name = "F", default_value_t = 0.2, value_parser = fraction)]
    test_fraction: f64,
    /// Share of the training rows held out for validation, at least 0 and below 1 [default: 0.1 of raw text and of
    /// the sample, 0 of archives]
    #[arg(long, value_name = "F", value_parser = fraction)]
    validation_fraction: Option<f64>,
    /// Ids of the vocabulary, at least 4
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = in_range(4, ModelConfig::MAX))]
    num_words: usize,
    /// Ids of a row; longer texts are cut, shorter ones padded [default: 32, or the width of prepared ids]
    #[arg(long, value_name = "N", value_parser = in_range(1, DataOptions::MAXLEN_MAX))]
    maxlen: Option<usize>,
    /// Where shorter texts are padded
    #[arg(long, value_enum, default_value = "pre")]
    padding: Side,
    /// Where longer texts are cut
    #[arg(long, value_enum, default_value = "pre")]
    truncating: Side,
    /// Width of the embedding, at least 1
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = in_range(1, ModelConfig::MAX))]
    embed: usize,
    /// Hidden units of the LSTM, at least 1
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = in_range(1, ModelConfig::MAX))]
    hidden: usize,
    /// Classes, at least 2 [default: as many as the labels need]
    #[arg(long, value_name = "N", value_parser = in_range(1, ModelConfig::MAX))]
    classes: Option<usize>,
    /// Passes over the training rows; with --resume the total, not what is added
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = in_range(1, 1_000_000))]
    epochs: usize,
    /// Rows of a batch
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = in_range(1, TrainOptions::BATCH_SIZE_MAX))]
    batch_size: usize,
    /// Learning rate of Adam, above 0
    #[arg(long, value_name = "F", default_value_t = 0.001, allow_negative_numbers = true)]
    lr: f32,
    /// What becomes of the learning rate: constant, or cosine down to 0 at the end (Keras' CosineDecay)
    #[arg(long, value_name = "NAME", default_value_t = LrSchedule::Constant)]
    lr_schedule: LrSchedule,
    /// Steps in which the learning rate rises from 0 to --lr; 0 is off
    #[arg(long, value_name = "N", default_value_t = 0)]
    warmup_steps: u64,
    /// Largest global norm of a step's gradient (Keras' global_clipnorm); 0 is off
    #[arg(long, value_name = "F", default_value_t = 0.0, allow_negative_numbers = true)]
    clip_norm: f32,
    /// Decoupled weight decay of every parameter (Keras' AdamW); 0 is off
    #[arg(long, value_name = "F", default_value_t = 0.0, allow_negative_numbers = true)]
    weight_decay: f32,
    /// What training rows of a class count: none (1 each), balanced (rare classes more), or NAME=WEIGHT,… (others 1)
    #[arg(long, value_name = "WEIGHTS", default_value_t = ClassWeight::None)]
    class_weight: ClassWeight,
    /// Slots of the shuffle buffer, as in tf.data; 0 keeps the file's order
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = in_range(0, u32::MAX as usize))]
    shuffle_buffer: usize,
    /// Stop after N epochs without a lower validation loss
    #[arg(long, value_name = "N", value_parser = in_range(1, 1_000_000))]
    patience: Option<usize>,
    /// Seed of the initial weights, the splits and every order
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// What the operands of products are stored in: f32, bf16 or f16 (sums, loss and optimiser stay in f32)
    #[arg(long, value_name = "TYPE", default_value_t = Precision::F32)]
    precision: Precision,
    #[command(flatten)]
    device: DeviceArgs,
    /// Start from these weights (.npz, .keras, .weights.h5, .safetensors; or a model file); they give the shapes
    #[arg(long, value_name = "WEIGHTS")]
    init: Option<PathBuf>,
    /// Write the final model here too (.safetensors)
    #[arg(long, value_name = "MODEL")]
    save: Option<PathBuf>,
    /// Go on from this model file, to the same bits as without the stop
    #[arg(long, value_name = "MODEL", conflicts_with = "init")]
    resume: Option<PathBuf>,
    /// Write the report here too (JSON)
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write loss, accuracy and speed of every epoch for TensorBoard, into a folder of the run's name in DIR
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
    /// Folder of the runs
    #[arg(long, value_name = "DIR", default_value = "runs")]
    runs: PathBuf,
}

/// `report.json`.
#[derive(Serialize)]
struct Report<'a> {
    recurve: &'static str,
    device: &'a DeviceInfo,
    data: ReportData<'a>,
    model: &'a ModelConfig,
    parameters: usize,
    seed: u64,
    config: &'a TrainOptions,
    baselines: Option<Baselines>,
    /// With f16.
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_scale: Option<LossScale>,
    epochs: &'a [ReportEpoch],
    best_epoch: Option<u32>,
    ending: Option<Ending>,
    steps: u64,
    load_seconds: f64,
    total_seconds: f64,
}

#[derive(Serialize)]
struct ReportData<'a> {
    name: &'a str,
    sha256: &'a str,
    train_rows: usize,
    validation_rows: usize,
    test_rows: usize,
    options: &'a DataOptions,
}

/// One epoch of a report. Epochs of an earlier call of which no report is left have no seconds.
#[derive(Clone, Serialize, Deserialize)]
struct ReportEpoch {
    #[serde(flatten)]
    metrics: EpochMetrics,
    train_seconds: Option<f64>,
    eval_seconds: Option<f64>,
}

/// An epoch as the reference program prints it.
pub fn epoch_line(epoch: &EpochMetrics) -> String {
    let mut line =
        format!("Epoch {}, Loss: {:.4}, Accuracy: {:.2}", epoch.epoch, epoch.loss, 100.0 * epoch.accuracy);
    for (part, loss, accuracy) in [
        ("Test", epoch.test_loss, epoch.test_accuracy),
        ("Validation", epoch.validation_loss, epoch.validation_accuracy),
    ] {
        if let (Some(loss), Some(accuracy)) = (loss, accuracy) {
            line += &format!(", {part} Loss: {loss:.4}, {part} Accuracy: {:.2}", 100.0 * accuracy);
        }
    }
    line
}

/// An epoch's figures under the tags that TensorBoard groups into charts. Accuracies are fractions.
fn scalars(epoch: &EpochMetrics, examples_per_s: Option<f64>) -> Vec<(&'static str, f64)> {
    let all = [
        ("loss/train", Some(epoch.loss)),
        ("loss/validation", epoch.validation_loss),
        ("loss/test", epoch.test_loss),
        ("accuracy/train", Some(epoch.accuracy)),
        ("accuracy/validation", epoch.validation_accuracy),
        ("accuracy/test", epoch.test_accuracy),
        ("speed/examples_per_s", examples_per_s),
    ];
    all.into_iter().filter_map(|(tag, value)| Some((tag, value?))).collect()
}

pub fn run(args: &TrainArgs, given: &Given) -> Result<()> {
    let begun = Instant::now();
    let (mut checkpoint, dataset) = match &args.resume {
        Some(path) => resume(args, given, path)?,
        None => start(args, given)?,
    };
    // Everything that can be wrong with the flags is found before the first epoch.
    checkpoint.options.check(&dataset)?;
    if let Some(save) = &args.save
        && save.extension().is_none_or(|extension| extension != "safetensors")
    {
        return Err(Error::usage(
            "--save",
            format!("{} must end in .safetensors, the format of model files", save.display()),
        ));
    }
    for (flag, path) in [("--save", &args.save), ("--report", &args.report)] {
        let folder = path.as_ref().and_then(|path| path.parent()).filter(|f| !f.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            return Err(Error::usage(
                flag,
                format!("there is no folder {}; make it first", folder.display()),
            ));
        }
    }
    let mut engine = args.device.engine_in(checkpoint.options.precision)?;
    let info = engine.info();

    say(format!("Data: {}{}", dataset.description, parts(&dataset)))?;
    if let Some(hint) = &dataset.hint {
        say(format!("      {hint}"))?;
    }
    let config = checkpoint.model.config;
    say(format!(
        "Model: Embedding({}, {}) -> LSTM({}) -> Dense({}) softmax, {} parameters, seed {}",
        config.vocab,
        config.embed,
        config.hidden,
        config.classes,
        checkpoint.model.table.len(),
        checkpoint.options.seed
    ))?;
    say(format!("Device: {} ({}), {}, threads: {}", info.device, info.name, info.executed, info.threads))?;
    let judged = dataset.test.as_ref().or(dataset.validation.as_ref());
    let baselines = judged.map(|judged| baselines(&dataset.train, judged, config.vocab, config.classes));
    if let Some(baselines) = baselines {
        say(format!(
            "To beat on the {} part: {:.2} % by always answering the most frequent class, {:.2} % by naive Bayes",
            if dataset.test.is_some() { "test" } else { "validation" },
            100.0 * baselines.majority,
            100.0 * baselines.naive_bayes
        ))?;
    }

    let run = match args.resume.as_deref().and_then(Run::of_model) {
        Some(run) => {
            run.remove_leftovers()?;
            run
        }
        None => Run::create(&args.runs, &dataset.name)?,
    };
    let mut events = None;
    if let Some(folder) = &args.tensorboard {
        let name = run.folder().file_name().unwrap_or(run.folder().as_os_str());
        let mut writer = Writer::create(&folder.join(name))?;
        if writer.is_fresh() {
            // Of a training that goes on and was not watched before: its curves are to be whole.
            for epoch in &checkpoint.progress.history {
                writer.scalars(epoch.epoch, &scalars(epoch, None))?;
            }
        }
        events = Some(writer);
    }
    super::heed_ctrl_c()?;
    let load_seconds = begun.elapsed().as_secs_f64();
    let mut watcher = Watcher {
        epochs_total: checkpoint.options.epochs,
        resumed: checkpoint.progress.metrics,
        epochs: earlier_epochs(&run.report(), &checkpoint),
        run,
        args,
        dataset: &dataset,
        info,
        baselines,
        begun,
        load_seconds,
        first_step: checkpoint.state.t,
        train_seconds: 0.0,
        examples: 0,
        events,
        progress: Progress::new(),
        saving: None,
        saved: Ok(()),
    };
    let outcome = train(engine.as_mut(), &mut checkpoint, &dataset, &mut watcher);
    watcher.progress.clear();
    watcher.settle()?;
    let outcome = outcome.map_err(|error| match error {
        Error::Diverged { epoch, batch, loss, .. } => {
            let last = watcher.run.last();
            Error::Diverged { epoch, batch, loss, kept: last.is_file().then_some(last) }
        }
        other => other,
    })?;
    watcher.load_seconds += outcome.load_seconds;
    watcher.report(&checkpoint, Some(outcome.ending))?.write()?;
    if outcome.ending == Ending::Interrupted {
        return Err(Error::Interrupted { saved: Some(watcher.run.last()) });
    }
    if !watcher.run.last().is_file() {
        // All epochs had been done before.
        checkpoint.save(&watcher.run.last())?;
    }
    if let Some(save) = &args.save {
        checkpoint.save(save)?;
    }
    watcher.summary(&checkpoint, outcome.ending)
}

/// What is to be told of the loss scale, where there is one.
fn loss_scale(checkpoint: &Checkpoint) -> Option<LossScale> {
    checkpoint.options.precision.scales_loss().then_some(checkpoint.state.loss_scale)
}

fn parts(dataset: &Dataset) -> String {
    let mut words = format!(": {} training", dataset.train.rows());
    for (part, examples) in [("validation", &dataset.validation), ("test", &dataset.test)] {
        if let Some(examples) = examples {
            words += &format!(", {} {part}", examples.rows());
        }
    }
    words + " rows"
}

impl TrainArgs {
    fn source(&self) -> Option<&Source> {
        self.source.as_ref().or(self.data.as_ref())
    }

    fn data_options(&self) -> DataOptions {
        DataOptions {
            source: self.source().cloned().unwrap_or_default(),
            test: self.test.clone(),
            num_words: self.num_words,
            maxlen: self.maxlen,
            padding: self.padding,
            truncating: self.truncating,
            text_column: self.text_column.clone(),
            label_column: self.label_column.clone(),
            test_fraction: self.test_fraction,
            validation_fraction: self.validation_fraction,
            classes: self.classes,
            seed: self.seed,
        }
    }

    fn train_options(&self) -> TrainOptions {
        TrainOptions {
            // The parsers' ranges keep both far below 2^32.
            epochs: u32::try_from(self.epochs).unwrap_or(u32::MAX),
            patience: self.patience.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
            batch_size: self.batch_size,
            lr: self.lr,
            lr_schedule: self.lr_schedule,
            warmup_steps: self.warmup_steps,
            clip_norm: self.clip_norm,
            weight_decay: self.weight_decay,
            // Known once the labels are.
            class_weights: None,
            precision: self.precision,
            shuffle_buffer: self.shuffle_buffer,
            seed: self.seed,
        }
    }
}

/// A training from the beginning.
fn start(args: &TrainArgs, given: &Given) -> Result<(Checkpoint, Dataset)> {
    let mut options = args.data_options();
    let mut train_options = args.train_options();
    train_options.check_ranges()?;
    ModelConfig {
        embed: args.embed,
        hidden: args.hidden,
        classes: args.classes.unwrap_or(2),
        ..Default::default()
    }
    .check()?;
    let mut vocabulary = None;
    let init = match &args.init {
        None => None,
        Some(path) => {
            let weights = Weights::load(path)?;
            let config = weights.model.config;
            for (field, flag, typed, found) in [
                ("num_words", "--num-words", args.num_words, config.vocab),
                ("embed", "--embed", args.embed, config.embed),
                ("hidden", "--hidden", args.hidden, config.hidden),
                ("classes", "--classes", args.classes.unwrap_or(0), config.classes),
            ] {
                if given.has(field) && typed != found {
                    return Err(Error::usage(
                        flag,
                        format!(
                            "{typed} contradicts --init {}, whose weights have {found}; leave the flag out",
                            path.display()
                        ),
                    ));
                }
            }
            options.num_words = config.vocab;
            options.classes = Some(config.classes);
            // A model may bring its words along: the ids of its embedding mean nothing without them.
            if let Ok(Checkpoint { encoding, .. }) = load_model(path)
                && let Words::Known(known) = encoding.words
            {
                vocabulary = Some(known);
            }
            Some(weights)
        }
    };
    let dataset = data::load(&options, vocabulary)?;
    train_options.class_weights = args.class_weight.resolve(&dataset.classes, &dataset.train.y)?;
    let (model, params) = match init {
        Some(weights) => (weights.model, weights.params),
        None => {
            let model = Model::new(ModelConfig {
                vocab: dataset.vocab,
                embed: args.embed,
                hidden: args.hidden,
                classes: dataset.classes.len(),
                ..Default::default()
            })?;
            let params = model.init(args.seed);
            (model, params)
        }
    };
    let checkpoint = Checkpoint::new(model, params, AdamConfig::default(), &dataset, train_options);
    Ok((checkpoint, dataset))
}

/// A training that goes on: everything but the number of epochs is as it was.
fn resume(args: &TrainArgs, given: &Given, path: &Path) -> Result<(Checkpoint, Dataset)> {
    let mut checkpoint = Checkpoint::load(path)?;
    let (asked_data, asked) = (args.data_options(), args.train_options());
    let (data, options, config) = (&checkpoint.data, &checkpoint.options, checkpoint.model.config);
    let path_of = |path: &Option<PathBuf>| path.as_ref().map_or("none".into(), |p| p.display().to_string());
    let compare: [(&str, &str, String, String); 22] = [
        ("test", "--test", path_of(&asked_data.test), path_of(&data.test)),
        ("text_column", "--text-column", asked_data.text_column, data.text_column.clone()),
        ("label_column", "--label-column", asked_data.label_column, data.label_column.clone()),
        ("test_fraction", "--test-fraction", args.test_fraction.to_string(), data.test_fraction.to_string()),
        (
            "validation_fraction",
            "--validation-fraction",
            format!("{:?}", args.validation_fraction),
            format!("{:?}", data.validation_fraction),
        ),
        ("num_words", "--num-words", args.num_words.to_string(), data.num_words.to_string()),
        ("maxlen", "--maxlen", format!("{:?}", args.maxlen), format!("{:?}", data.maxlen)),
        ("padding", "--padding", format!("{:?}", args.padding), format!("{:?}", data.padding)),
        ("truncating", "--truncating", format!("{:?}", args.truncating), format!("{:?}", data.truncating)),
        ("embed", "--embed", args.embed.to_string(), config.embed.to_string()),
        ("hidden", "--hidden", args.hidden.to_string(), config.hidden.to_string()),
        ("classes", "--classes", format!("{:?}", args.classes), format!("{:?}", Some(config.classes))),
        ("batch_size", "--batch-size", asked.batch_size.to_string(), options.batch_size.to_string()),
        ("lr", "--lr", asked.lr.to_string(), options.lr.to_string()),
        ("lr_schedule", "--lr-schedule", asked.lr_schedule.to_string(), options.lr_schedule.to_string()),
        ("warmup_steps", "--warmup-steps", asked.warmup_steps.to_string(), options.warmup_steps.to_string()),
        ("precision", "--precision", asked.precision.to_string(), options.precision.to_string()),
        ("clip_norm", "--clip-norm", asked.clip_norm.to_string(), options.clip_norm.to_string()),
        ("weight_decay", "--weight-decay", asked.weight_decay.to_string(), options.weight_decay.to_string()),
        (
            "shuffle_buffer",
            "--shuffle-buffer",
            asked.shuffle_buffer.to_string(),
            options.shuffle_buffer.to_string(),
        ),
        ("seed", "--seed", asked.seed.to_string(), options.seed.to_string()),
        (
            if args.data.is_some() { "data" } else { "source" },
            "--data",
            asked_data.source.to_string(),
            // `auto` asks for nothing in particular.
            if asked_data.source == Source::Auto { "auto".into() } else { data.source.to_string() },
        ),
    ];
    let contradicts = |flag: &str, typed: String, stored: String| {
        Error::usage(
            flag,
            format!(
                "{typed} contradicts --resume {}, which was trained with {stored}; leave the flag out, or start \
                 from its weights with --init",
                path.display()
            ),
        )
    };
    for (field, flag, typed, stored) in compare {
        if given.has(field) && typed != stored {
            return Err(contradicts(flag, typed, stored));
        }
    }
    if given.has("epochs") {
        if options.lr_schedule == LrSchedule::Cosine && asked.epochs != options.epochs {
            // Its learning rates are laid out over all epochs.
            return Err(contradicts(
                "--epochs",
                asked.epochs.to_string(),
                format!("a cosine over {}", options.epochs),
            ));
        }
        checkpoint.options.epochs = asked.epochs;
    }
    if given.has("patience") {
        checkpoint.options.patience = asked.patience;
    }
    let dataset = checkpoint.dataset()?;
    if given.has("class_weight") {
        let (typed, stored) = (
            args.class_weight.resolve(&dataset.classes, &dataset.train.y)?,
            &checkpoint.options.class_weights,
        );
        if typed != *stored {
            let words = |weights: &Option<Vec<f32>>| match weights {
                None => "no weights".to_string(),
                Some(weights) => format!("weights {weights:?}"),
            };
            return Err(contradicts("--class-weight", words(&typed), words(stored)));
        }
    }
    Ok((checkpoint, dataset))
}

/// The finished epochs of a training that goes on, with the seconds that its report has.
fn earlier_epochs(report: &Path, checkpoint: &Checkpoint) -> Vec<ReportEpoch> {
    #[derive(Deserialize)]
    struct Earlier {
        epochs: Vec<ReportEpoch>,
    }
    let earlier: Vec<ReportEpoch> = std::fs::read(report)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Earlier>(&bytes).ok())
        .map_or(Vec::new(), |report| report.epochs);
    let history = checkpoint.progress.history.iter();
    history
        .map(|metrics| {
            let same = earlier.iter().find(|old| old.metrics == *metrics);
            same.cloned().unwrap_or(ReportEpoch {
                metrics: *metrics,
                train_seconds: None,
                eval_seconds: None,
            })
        })
        .collect()
}

/// Bytes and the files that they are to be.
struct Write {
    bytes: Vec<u8>,
    paths: Vec<PathBuf>,
}

impl Write {
    fn write(self) -> Result<()> {
        self.paths.iter().try_for_each(|path| files::write_bytes(path, &self.bytes))
    }
}

/// An epoch whose files are being written: the disk is waited for while the next one trains.
struct Saving {
    writer: JoinHandle<Result<()>>,
    /// What is said when they are.
    line: String,
}

/// Prints, saves, reports, and heeds Ctrl-C.
struct Watcher<'a> {
    epochs_total: u32,
    /// What an earlier call has done of the first epoch.
    resumed: Metrics,
    epochs: Vec<ReportEpoch>,
    run: Run,
    args: &'a TrainArgs,
    dataset: &'a Dataset,
    info: DeviceInfo,
    baselines: Option<Baselines>,
    begun: Instant,
    load_seconds: f64,
    first_step: u64,
    /// Of this call's epochs.
    train_seconds: f64,
    /// Rows that this call has trained on.
    examples: u64,
    /// TensorBoard's file.
    events: Option<Writer>,
    progress: Progress,
    saving: Option<Saving>,
    /// What came of those that nobody has asked for.
    saved: Result<()>,
}

impl Watcher<'_> {
    /// Waits for the last epoch's files, and says the epoch: one that was printed is never lost.
    fn settle(&mut self) -> Result<()> {
        std::mem::replace(&mut self.saved, Ok(()))?;
        let Some(Saving { writer, line }) = self.saving.take() else { return Ok(()) };
        match writer.join() {
            Ok(written) => written?,
            Err(_) => return Err(Error::Failed("the thread that saves models panicked".into())),
        }
        self.progress.clear();
        say(line)
    }

    /// What `report.json` and `--report` are to hold.
    fn report(&self, checkpoint: &Checkpoint, ending: Option<Ending>) -> Result<Write> {
        let rows = |examples: &Option<data::Examples>| examples.as_ref().map_or(0, data::Examples::rows);
        let report = Report {
            recurve: env!("CARGO_PKG_VERSION"),
            device: &self.info,
            data: ReportData {
                name: &self.dataset.name,
                sha256: &self.dataset.sha256,
                train_rows: self.dataset.train.rows(),
                validation_rows: rows(&self.dataset.validation),
                test_rows: rows(&self.dataset.test),
                options: &self.dataset.options,
            },
            model: &checkpoint.model.config,
            parameters: checkpoint.model.table.len(),
            seed: checkpoint.options.seed,
            config: &checkpoint.options,
            baselines: self.baselines,
            loss_scale: loss_scale(checkpoint),
            epochs: &self.epochs,
            best_epoch: best_epoch(&checkpoint.progress.history).map(|best| best.epoch),
            ending,
            steps: checkpoint.state.t - self.first_step,
            load_seconds: self.load_seconds,
            total_seconds: self.begun.elapsed().as_secs_f64(),
        };
        let json = serde_json::to_vec_pretty(&report)
            .map_err(|error| Error::Failed(format!("the report cannot be written as JSON: {error}")))?;
        let paths = [Some(self.run.report()), self.args.report.clone()].into_iter().flatten().collect();
        Ok(Write { bytes: json, paths })
    }

    fn summary(&self, checkpoint: &Checkpoint, ending: Ending) -> Result<()> {
        let seconds = self.train_seconds;
        let steps = checkpoint.state.t - self.first_step;
        let mut line = format!("Trained {steps} steps in {seconds:.2} s");
        if seconds > 0.0 {
            line += &format!(" ({:.0} examples/s)", self.examples as f64 / seconds);
        }
        if ending == Ending::Patience {
            line += "; stopped early, the validation loss no longer fell";
        }
        say(line)?;
        if let Some(LossScale { scale, skipped, .. }) = loss_scale(checkpoint) {
            say(format!(
                "Loss scale {scale}; of all {} steps {skipped} were skipped, whose gradients were not finite",
                checkpoint.state.t
            ))?;
        }
        if let Some(best) = best_epoch(&checkpoint.progress.history) {
            let by = if best.validation_loss.is_some() { "validation" } else { "training" };
            say(format!("Best by {by} loss: {}", epoch_line(best)))?;
            if best.validation_loss.is_none() {
                say(
                    "To keep the epoch that does best on new text, hold rows out: --validation-fraction 0.1",
                )?;
            }
        }
        // Where a training went on in a new folder, the best epoch's model may lie in the old one.
        let model = Some(self.run.best()).filter(|best| best.is_file()).unwrap_or(self.run.last());
        say(format!("Model: {}  Report: {}", model.display(), self.run.report().display()))?;
        if matches!(checkpoint.encoding.words, Words::Known(_)) {
            let example = match self.dataset.options.source {
                Source::File(_) => "some text",
                _ => "a moving, beautifully acted film",
            };
            say(format!("Try it: recurve predict {example:?}"))?;
        }
        Ok(())
    }
}

impl Observer for Watcher<'_> {
    fn batches(&mut self, epoch: u32, metrics: &Metrics, of: u64, elapsed: Duration) {
        if self.saving.as_ref().is_some_and(|saving| saving.writer.is_finished()) {
            self.saved = self.settle();
        }
        self.progress.batches(epoch, self.epochs_total, metrics, of, elapsed, self.resumed.batches);
    }

    fn epoch(&mut self, checkpoint: &Checkpoint, seconds: EpochSeconds, best: bool) -> Result<()> {
        self.progress.clear();
        self.settle()?;
        let earlier = std::mem::take(&mut self.resumed).examples;
        let examples = (self.dataset.train.rows() as u64).saturating_sub(earlier);
        self.examples += examples;
        let Some(metrics) = checkpoint.progress.history.last() else { return Ok(()) };
        self.train_seconds += seconds.train_seconds;
        self.epochs.push(ReportEpoch {
            metrics: *metrics,
            train_seconds: Some(seconds.train_seconds),
            eval_seconds: Some(seconds.eval_seconds),
        });
        if let Some(events) = &mut self.events {
            let rate = Some(examples as f64 / seconds.train_seconds).filter(|rate| rate.is_finite());
            events.scalars(metrics.epoch, &scalars(metrics, rate))?;
        }
        let last = self.run.last();
        let bytes = checkpoint.to_bytes().map_err(|message| Error::format(&last, "", message))?;
        let mut paths = vec![last];
        if best {
            paths.push(self.run.best());
        }
        let (model, report) = (Write { bytes, paths }, self.report(checkpoint, None)?);
        let write = move || model.write().and_then(|()| report.write());
        let writer = std::thread::Builder::new().name("recurve-save".into()).spawn(write);
        let writer =
            writer.map_err(|error| Error::Failed(format!("cannot start a thread that saves: {error}")))?;
        self.saving = Some(Saving { writer, line: epoch_line(metrics) });
        Ok(())
    }

    fn interrupted(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.progress.clear();
        self.settle()?;
        checkpoint.save(&self.run.last())
    }

    fn stop(&self) -> bool {
        interrupted().load(Ordering::SeqCst)
    }
}
