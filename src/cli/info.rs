//! `recurve info`.

use super::ModelArgs;
use clap::Args;
use recurve::Result;
use recurve::backend::Device;
#[cfg(feature = "cuda")]
use recurve::backend::cuda::{Fused, image};
use recurve::checkpoint::Checkpoint;
use recurve::data::{IMDB_ARCHIVE, IMDB_WORD_INDEX, Words, data_folder, imdb_folders};
#[cfg(feature = "cuda")]
use recurve::model::ModelConfig;
use recurve::run::Run;

/// Arguments of `recurve info`.
#[derive(Args, Debug)]
pub struct InfoArgs {
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(args: &InfoArgs) -> Result<()> {
    if args.model.model.is_some() {
        let (path, checkpoint) = args.model.load()?;
        return super::say(describe(&path.display().to_string(), &checkpoint));
    }
    super::say(format!("recurve {}", env!("CARGO_PKG_VERSION")))?;
    for device in [Device::Cpu, Device::Reference] {
        let info = device.engine(0)?.info();
        super::say(format!(
            "device {:<10} {} ({}), {} threads",
            info.device, info.name, info.executed, info.threads
        ))?;
    }
    for line in cuda_lines() {
        super::say(line)?;
    }
    #[cfg(feature = "cuda")]
    for line in cuda_paths().into_iter().chain([image::describe()]) {
        super::say(line)?;
    }
    if let Ok(folder) = data_folder() {
        super::say(format!("data folder       {}", folder.display()))?;
    }
    for name in [IMDB_ARCHIVE, IMDB_WORD_INDEX] {
        let found = imdb_folders().into_iter().map(|folder| folder.join(name)).find(|path| path.is_file());
        let found = found
            .map_or("not found; get it with: recurve fetch imdb".to_string(), |p| p.display().to_string());
        super::say(format!("{name:<21} {found}"))?;
    }
    match Run::newest_model(&args.model.runs) {
        Ok(model) => super::say(format!("newest model      {0} (recurve info --model {0})", model.display())),
        Err(_) => super::say("newest model      none yet; make one with: recurve train"),
    }
}

/// A line for each CUDA device, or why there is none.
#[cfg(feature = "cuda")]
fn cuda_lines() -> Vec<String> {
    use recurve::backend::cuda::{Cuda, devices};
    let count = match devices() {
        Ok(count) => count,
        Err(missing) => {
            return vec![format!("device cuda       none: {}", reason(&missing.into_error("cuda")))];
        }
    };
    let describe = |ordinal| {
        let cuda = match Cuda::new(ordinal) {
            Ok(cuda) => cuda,
            Err(error) => {
                return format!("device {:<10} not usable: {}", format!("cuda:{ordinal}"), reason(&error));
            }
        };
        let info = cuda.info();
        let gibibytes = cuda.memory() as f64 / (1u64 << 30) as f64;
        let mut line = format!(
            "device {:<10} {} ({}), {gibibytes:.1} GiB, {} bytes of shared memory a block, persistent kernels up to H {}",
            info.device,
            info.name,
            info.executed,
            cuda.fused_bytes(),
            cuda.persistent_units()
        );
        for refused in cuda.refused_images() {
            line.push_str(&format!("; did not load {refused}"));
        }
        line
    };
    (0..count).map(describe).collect()
}

/// KiB of shared memory that a block can have on each architecture (CUDA C++ Programming Guide, table of compute
/// capabilities).
#[cfg(feature = "cuda")]
const SHARED_KIB: [(&str, usize); 5] =
    [("sm_75", 64), ("sm_80", 163), ("sm_86", 99), ("sm_89", 99), ("sm_90a", 227)];

/// How a model trains on CUDA, on each architecture: the path, and why not the fused one.
#[cfg(feature = "cuda")]
fn cuda_path(config: &ModelConfig, t: usize, batch: usize) -> String {
    use recurve::backend::cuda::{PathChoice, Unfused, path::path};
    let layer = path(config.hidden, config.embed, PathChoice::Best);
    let fused = match Fused::new(config, t) {
        Ok(_) if batch > recurve::tuning::SEQUENCE_PARTIALS as usize => Err(Unfused::Batch(batch)),
        found => found,
    };
    let fused = match fused {
        Ok(fused) => fused,
        Err(why) => return format!("{layer} ({why})"),
    };
    let (fits, not): (Vec<_>, Vec<_>) =
        SHARED_KIB.iter().partition(|(_, kib)| fused.within(kib * 1024).is_ok());
    let names = |all: &[&(&str, usize)]| {
        all.iter().map(|(arch, kib)| format!("{arch} ({} bytes)", kib * 1024)).collect::<Vec<_>>().join(", ")
    };
    match (fits.is_empty(), not.is_empty()) {
        (false, true) => format!("{fused}, which every architecture has"),
        (true, _) => {
            format!("{layer} (not fused: a row asks for {} bytes of shared memory)", fused.step_bytes)
        }
        _ => format!("{fused}, on {}; on {}: {layer}", names(&fits), names(&not)),
    }
}

/// Which kernels a layer of each size goes through. It depends on the sizes alone; a device's shared memory only changes
/// where a part of U is kept, and its multiprocessors whether persistent kernels give way to others with the same bits.
#[cfg(feature = "cuda")]
fn cuda_paths() -> Vec<String> {
    use recurve::backend::cuda::{PathChoice, path::path, staged_rows};
    let path = |hidden, embed| path(hidden, embed, PathChoice::Best);
    let sizes: [(&str, usize, &str, usize); 11] = [
        ("1-32", 32, "1-16", 16),
        ("1-32", 32, "17-32", 32),
        ("1-32", 32, "33-", 33),
        ("33-64", 64, "1-16", 16),
        ("33-64", 64, "17-32", 32),
        ("33-64", 64, "33-", 33),
        ("65-96", 96, "any", 16),
        ("97-128", 128, "any", 16),
        ("129-256", 256, "any", 16),
        ("257-512", 512, "any", 16),
        ("513-", 513, "any", 16),
    ];
    let mut lines =
        vec!["LSTM on CUDA      by hidden units H and inputs E, on every architecture".to_string()];
    for (hidden, h, embed, e) in sizes {
        lines.push(format!("  H {hidden:<7} E {embed:<6} {}", path(h, e)));
    }
    lines.push(format!(
        "  persistent      {} units a block, a block a multiprocessor; a device with fewer, or that cannot launch blocks together: one \
         kernel a time step, the same bits",
        recurve::tuning::PERSISTENT_UNITS
    ));
    lines.push(format!(
        "Steps on CUDA     fused (2 kernels a step) where H <= 64, E <= 64 (32 where H > 32), batch <= {} and a row fits:",
        recurve::tuning::SEQUENCE_PARTIALS
    ));
    lines.push(
        "  --precision     f32, bf16 and f16 by the same paths; f16 has one kernel more a fused step, else two: the loss' scale"
            .to_string(),
    );
    lines.push(format!(
        "  many a launch   with RECURVE_CUDA_PATH=steps, {} fused steps by one kernel, the same bits: a block a multiprocessor, of which a \
         device has to have {} more than a batch has rows",
        recurve::backend::cuda::MOST_STEPS,
        recurve::backend::cuda::LEAST_UPDATERS
    ));
    for (h, e) in [(32, 16), (32, 32), (32, 64), (64, 16), (64, 32)] {
        let config = ModelConfig { hidden: h, embed: e, ..ModelConfig::default() };
        let longest = |kibibytes: usize| {
            let fits = |t: usize| Fused::new(&config, t).is_ok_and(|f| f.within(kibibytes * 1024).is_ok());
            (1..=1024).take_while(|&t| fits(t)).last().unwrap_or(0)
        };
        let at_32 = Fused::new(&config, 32).map_or(0, |fused| fused.step_bytes);
        let by_arch = SHARED_KIB.map(|(arch, kib)| format!("{} on {arch}", longest(kib))).join(", ");
        lines.push(format!(
            "  H {:<7} E {:<6} {at_32} bytes at T 32; T up to {by_arch}",
            format!("-{h}"),
            format!("-{e}")
        ));
    }
    // Less what the largest of these kernels declares, which no architecture changes.
    let kernels =
        image::resources().iter().filter(|r| r.stem == "lstm_sequence" && r.kernel.contains("_h128"));
    let used = kernels.map(|r| r.shared_bytes).max().unwrap_or(0);
    let staged: Vec<String> = SHARED_KIB
        .iter()
        .map(|(arch, kib)| format!("{} on {arch}", staged_rows(*kib as u32 * 1024, used)))
        .collect();
    lines.push(format!(
        "  rows of U in shared memory at H 97-128, of {} not in registers: {}",
        recurve::tuning::SEQUENCE_STREAMED,
        staged.join(", ")
    ));
    lines
}

#[cfg(not(feature = "cuda"))]
fn cuda_lines() -> Vec<String> {
    vec!["device cuda       not in this build (feature `cuda`)".to_string()]
}

/// An error about a device without the device's name.
#[cfg(feature = "cuda")]
fn reason(error: &recurve::Error) -> String {
    match error {
        recurve::Error::Device { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

/// A model in words.
fn describe(path: &str, checkpoint: &Checkpoint) -> String {
    let config = checkpoint.model.config;
    let words = match &checkpoint.encoding.words {
        Words::Known(vocabulary) => format!("{} words of its own", vocabulary.words().len()),
        Words::ImdbIndex => "IMDB ids; words from Keras' word index (recurve fetch imdb)".to_string(),
        Words::Prepared => "prepared ids; no words".to_string(),
    };
    let mut lines = vec![
        path.to_string(),
        format!(
            "  Embedding({}, {}) -> LSTM({}) -> Dense({}) softmax, {} parameters",
            config.vocab,
            config.embed,
            config.hidden,
            config.classes,
            checkpoint.model.table.len()
        ),
        format!("  classes      {}", checkpoint.classes.join(", ")),
        #[cfg(feature = "cuda")]
        format!(
            "  on CUDA      {}",
            cuda_path(&config, checkpoint.encoding.maxlen, checkpoint.options.batch_size)
        ),
        format!("  input        {} ids a row; {words}", checkpoint.encoding.maxlen),
        match checkpoint.data_sha256.as_str() {
            "" => "  trained on   what its file does not say".to_string(),
            sha256 => format!("  trained on   {} (SHA-256 {sha256})", checkpoint.data_name),
        },
        format!(
            "  training     {} of {} epochs, {} steps, batch {}, lr {}, seed {}, {}",
            checkpoint.progress.epoch,
            checkpoint.options.epochs,
            checkpoint.state.t,
            checkpoint.options.batch_size,
            checkpoint.options.lr,
            checkpoint.options.seed,
            checkpoint.options.precision
        ),
    ];
    for spec in checkpoint.model.table.specs() {
        lines.push(format!("  {:<22} {:?}", spec.name, spec.shape));
    }
    lines.extend(
        checkpoint.progress.history.iter().map(|epoch| format!("  {}", super::train::epoch_line(epoch))),
    );
    lines.join("\n")
}
