//! The binary on CUDA as a user meets it, and everything that can be wrong with a driver or a device. The software
//! device is preloaded as the driver, and is told by environment variables what to lack.
#![cfg(all(feature = "cuda", target_os = "linux"))]
// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

#[path = "cli/place.rs"]
mod place;

use place::{Place, SMALL, text, toy_csv, with};
use std::fs;
use std::process::{Command, Output, Stdio};

/// An empty folder with a small data set, and a driver whose shortcomings are these variables.
struct Driven {
    folder: tempfile::TempDir,
    driver: Option<Vec<(String, String)>>,
}

const TRAIN: [&str; 12] = [
    "train",
    "toy.csv",
    "--embed",
    "4",
    "--hidden",
    "5",
    "--maxlen",
    "8",
    "--batch-size",
    "16",
    "--epochs",
    "2",
];

impl Driven {
    fn new(driver: Option<&[(&str, &str)]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut csv = String::from("text,label\n");
        for row in 0..80 {
            let (word, label) = if row % 2 == 0 { ("good", "yes") } else { ("bad", "no") };
            csv += &format!("\"this one, number {row}, is {word}\",{label}\n");
        }
        fs::write(folder.path().join("toy.csv"), csv).unwrap();
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        Self { folder, driver: driver.map(|variables| variables.iter().map(owned).collect()) }
    }

    /// Exit code, standard output and standard error.
    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_recurve"));
        command.args(args).current_dir(self.folder.path()).env("RECURVE_DATA", "data").stdin(Stdio::null());
        if let Some(driver) = &self.driver {
            command.env("LD_PRELOAD", softcuda::library().unwrap()).env("SOFTCUDA_QUIET", "1");
            command.envs(driver.iter().map(|(name, value)| (name, value)));
        }
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let stderr = text(&output.stderr);
        assert!(!stderr.contains("panicked"), "{stderr}");
        (output.status.code(), text(&output.stdout), stderr)
    }

    fn train(&self, device: &str) -> (Option<i32>, String, String) {
        self.run(&[&TRAIN[..], &["--device", device]].concat())
    }

    /// Training on `cuda:0` has to fail with all of these words, and `auto` to say them and take the CPU.
    fn refuses(&self, words: &[&str]) {
        let (code, _, error) = self.train("cuda:0");
        println!("{error}");
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains("device cuda:0: ") && error.contains("--device cpu"), "{error}");
        let (code, out, error_of_auto) = self.train("auto");
        assert_eq!(code, Some(0), "{error_of_auto}");
        let device = out.lines().find(|line| line.starts_with("Device: ")).unwrap();
        assert!(device.starts_with("Device: cpu "), "{device}");
        let (code, info, _) = self.run(&["info"]);
        assert_eq!(code, Some(0));
        let info = info.lines().find(|line| line.starts_with("device cuda")).unwrap().to_string();
        for word in words {
            assert!(error.contains(word), "{word:?} in {error}");
            assert!(device.contains(word), "{word:?} in {device}");
            assert!(info.contains(word), "{word:?} in {info}");
        }
    }
}

#[test]
fn without_a_driver_cuda_is_an_error_and_auto_is_the_cpu() {
    let place = Driven::new(None);
    let (_, info, _) = place.run(&["info"]);
    if !info.contains("no NVIDIA driver was found") {
        println!("skipped: this machine has a driver");
        return;
    }
    let (code, _, error) = place.train("cuda");
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("no NVIDIA driver was found") && error.contains("--device cpu"), "{error}");
    let (code, out, error) = place.train("auto");
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("Device: cpu ") && !out.contains("auto:"), "{out}");
}

#[test]
fn a_driver_without_a_device() {
    Driven::new(Some(&[("SOFTCUDA_DEVICES", "0")])).refuses(&["it sees no GPU"]);
}

#[test]
fn a_driver_too_old_for_the_ptx() {
    Driven::new(Some(&[("SOFTCUDA_DRIVER_VERSION", "12000")])).refuses(&[
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        "the driver is for CUDA 12.0",
        "12.1 or newer; update it",
    ]);
}

#[test]
fn an_architecture_too_old_for_the_kernels() {
    Driven::new(Some(&[("SOFTCUDA_COMPUTE_CAPABILITY", "7.0")]))
        .refuses(&["compute capability 7.0", "need 7.5"]);
}

#[test]
fn a_device_number_chooses_and_a_wrong_one_is_named() {
    let place = Driven::new(Some(&[("SOFTCUDA_DEVICES", "2")]));
    let (code, out, error) = place.train("cuda:1");
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("Device: cuda:1 (softcuda"), "{out}");
    let (code, _, error) = place.train("cuda:2");
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("device cuda:2: there is no such device; the driver sees 2"), "{error}");
}

#[test]
fn auto_takes_the_device_and_says_which_image_ran() {
    for (choice, image) in [("committed", "committed PTX"), ("built", "PTX")] {
        let place = Driven::new(Some(&[("RECURVE_CUDA_IMAGE", choice)]));
        let (code, out, error) = place.train("auto");
        assert_eq!(code, Some(0), "{error}");
        let device = out.lines().find(|line| line.starts_with("Device: ")).unwrap();
        println!("{device}");
        assert!(device.contains("cuda:0 (softcuda") && device.contains(image), "{device}");
        // The model that it trained works without it.
        let (code, out, error) = place.run(&["predict", "--device", "cpu", "this one is good"]);
        assert_eq!(code, Some(0), "{error}");
        assert!(out.contains("this one is good"), "{out}");
        let (code, out, error) = place.run(&["eval", "--device", "cuda", "--json"]);
        assert_eq!(code, Some(0), "{error}");
        assert!(out.contains("\"device\": \"cuda:0\""), "{out}");
    }
    let place = Driven::new(Some(&[("RECURVE_CUDA_IMAGE", "newest")]));
    let (code, _, error) = place.train("cuda");
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("found \"newest\", expected best, built or committed"), "{error}");
}

#[test]
fn out_of_memory_says_how_much_was_asked_for() {
    let place = Driven::new(Some(&[("SOFTCUDA_MEMORY", "20000")]));
    let (code, _, error) = place.train("cuda");
    println!("{error}");
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("were asked for") && error.contains("KiB are free"), "{error}");
    assert!(error.contains("smaller batch") && error.contains("--device cpu"), "{error}");
}

/// Runs the binary with the software device in the driver's place.
fn run(place: &Place, settings: &[(&str, &str)], args: &[&str]) -> Output {
    let library = softcuda::library().unwrap();
    let mut command = place.command(args);
    command.env_remove("CUDA_VISIBLE_DEVICES").env("LD_PRELOAD", library).envs(settings.iter().copied());
    command.output().unwrap()
}

fn ok(place: &Place, settings: &[(&str, &str)], args: &[&str]) -> String {
    let output = run(place, settings, args);
    assert!(output.status.success(), "{args:?}: {}\n{}", output.status, text(&output.stderr));
    text(&output.stdout)
}

fn fails(place: &Place, settings: &[(&str, &str)], args: &[&str]) -> String {
    let output = run(place, settings, args);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    stderr
}

/// The line of the output that says what computes.
fn device_line(out: &str) -> &str {
    out.lines().find(|line| line.starts_with("Device: ")).unwrap_or_else(|| panic!("no device line: {out}"))
}

#[test]
fn train_eval_and_predict_run_on_the_device() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(120));
    let args = with(&["train", "mine.csv", "--epochs", "2", "--lr", "0.02"], &SMALL);
    let out = ok(
        &place,
        &[],
        &with(&args, &["--device", "cuda", "--save", "cuda.safetensors", "--report", "r.json"]),
    );
    let line = device_line(&out);
    assert!(line.contains("cuda:0") && line.contains("softcuda") && line.contains("committed PTX"), "{line}");
    assert_eq!(place.json("r.json")["device"]["device"], "cuda:0");
    println!("ran on: {line}");

    // The CPU learns the same.
    let cpu = place.ok(&with(&args, &["--device", "cpu", "--save", "cpu.safetensors"]));
    let losses = |out: &str| -> Vec<f64> {
        let epochs = out.lines().filter_map(|line| line.strip_prefix("Epoch "));
        epochs
            .map(|line| line.split("Loss: ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap())
            .collect()
    };
    assert_eq!(losses(&out).len(), 2);
    for (a, b) in losses(&out).iter().zip(losses(&cpu)) {
        assert!((a - b).abs() <= 1e-4, "{out}\n{cpu}");
    }
    // A model goes from the one device to the other.
    let on_gpu = ok(&place, &[], &["eval", "--model", "cpu.safetensors", "--device", "cuda:0", "--json"]);
    let on_cpu = place.ok(&["eval", "--model", "cpu.safetensors", "--device", "cpu", "--json"]);
    let loss =
        |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap()["loss"].as_f64().unwrap();
    assert!((loss(&on_gpu) - loss(&on_cpu)).abs() < 1e-6, "{on_gpu} {on_cpu}");
    let predict = ["predict", "--model", "cuda.safetensors", "--json", "this is good"];
    let answer =
        |out: &str| serde_json::from_str::<serde_json::Value>(out).unwrap()["probabilities"]["yes"].as_f64();
    let (gpu, cpu) = (ok(&place, &[], &with(&predict, &["--device", "cuda"])), place.ok(&predict));
    assert!((answer(&gpu).unwrap() - answer(&cpu).unwrap()).abs() < 1e-6, "{gpu} {cpu}");
}

/// Wider than the fused kernels, clipping: 16 bits in training, evaluation and prediction, beside the reference.
#[test]
fn train_eval_and_predict_run_in_16_bits() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(60));
    let args =
        with(&["train", "mine.csv", "--epochs", "1", "--clip-norm", "1", "--precision", "f16"], &SMALL);
    let args = with(&args, &["--lr", "0.02"]);
    let out = ok(&place, &[], &with(&args, &["--device", "cuda", "--save", "m.safetensors"]));
    assert!(device_line(&out).contains("in f16"), "{out}");
    let reference = place.ok(&with(&args, &["--device", "reference"]));
    let loss = |out: &str| -> f64 {
        let line = out.lines().find_map(|line| line.strip_prefix("Epoch 1, Loss: "));
        line.unwrap_or_else(|| panic!("{out}")).split(',').next().unwrap().parse().unwrap()
    };
    // A few roundings of 2^-11 of a loss near 0.7.
    assert!((loss(&out) - loss(&reference)).abs() < 1e-3, "{out}\n{reference}");
    let eval = |device: &str, precision: &str| {
        let args =
            ["eval", "--model", "m.safetensors", "--json", "--device", device, "--precision", precision];
        let json = if device == "cuda" { ok(&place, &[], &args) } else { place.ok(&args) };
        serde_json::from_str::<serde_json::Value>(&json).unwrap()["loss"].as_f64().unwrap()
    };
    for precision in ["bf16", "f16"] {
        let (device, reference) = (eval("cuda", precision), eval("reference", precision));
        assert!((device - reference).abs() < 1e-3, "{precision}: {device} {reference}");
        assert_ne!(device, eval("cuda", "f32"), "{precision}");
    }
    let predict =
        ["predict", "--model", "m.safetensors", "--device", "cuda", "--precision", "bf16", "this is good"];
    assert!(ok(&place, &[], &predict).starts_with(['y', 'n']));
}

#[test]
fn a_launch_that_fails_midway_leaves_the_checkpoint_and_a_resume_has_the_same_bits() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(120));
    let args =
        with(&with(&["train", "mine.csv", "--epochs", "3", "--device", "cuda"], &SMALL), &["--lr", "0.02"]);
    ok(&place, &[("SOFTCUDA_COUNTERS", "whole.jsonl")], &with(&args, &["--save", "whole.safetensors"]));
    // Somewhere in the last epoch: at three quarters of all the kernels of the whole run.
    let counters = fs::read_to_string(place.path("whole.jsonl")).unwrap();
    let kernels: u64 = counters
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .map(|line| {
            line["counters"]["direct_launches"].as_u64().unwrap()
                + line["counters"]["graph_kernel_nodes"].as_u64().unwrap()
        })
        .max()
        .unwrap();
    assert!(kernels > 40, "{counters}");
    fs::remove_dir_all(place.path("runs")).unwrap();
    let at = (kernels * 3 / 4).to_string();
    let error = fails(&place, &[("SOFTCUDA_FAIL_LAUNCH", &at)], &args);
    assert!(error.contains("cuda:0") && error.contains("training"), "{error}");
    let last = "runs/1-mine/last.safetensors";
    assert!(place.ok(&["info", "--model", last]).contains("2 of 3 epochs"), "{error}");
    ok(&place, &[], &["train", "--resume", last, "--device", "cuda", "--save", "resumed.safetensors"]);
    let bytes = |name: &str| fs::read(place.path(name)).unwrap();
    assert!(bytes("whole.safetensors") == bytes("resumed.safetensors"), "a resumed run has other bits");
}

#[test]
fn a_variable_chooses_the_path_of_training_and_evaluation() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(120));
    // More units than a block of the persistent kernels has.
    let args = with(
        &["train", "mine.csv", "--epochs", "2", "--device", "cuda"],
        &["--embed", "4", "--hidden", "20", "--maxlen", "8", "--batch-size", "16"],
    );
    // With which kernels each path trains and evaluates; one that a device cannot have gives way.
    let ways = [
        ("best", "40", ["fused_step_", "fused_forward"]),
        ("steps", "40", ["fused_steps_", "fused_forward"]),
        ("steps", "23", ["fused_step_", "fused_forward"]),
        ("unfused", "40", ["lstm_sequence_backward", "lstm_sequence_forward"]),
        ("persistent", "40", ["lstm_persistent_backward", "lstm_persistent_forward"]),
        ("persistent", "1", ["lstm_cell_backward", "lstm_cell_forward"]),
        ("cells", "40", ["lstm_cell_backward", "lstm_cell_forward"]),
    ];
    let every = ["fused_step_", "fused_steps_", "lstm_sequence", "lstm_persistent", "lstm_cell"];
    let mut models = Vec::new();
    for (way, (path, multiprocessors, kernels)) in ways.into_iter().enumerate() {
        let [counters, model] = ["jsonl", "safetensors"].map(|ending| format!("{way}.{ending}"));
        let settings = [
            ("RECURVE_CUDA_PATH", path),
            ("SOFTCUDA_COUNTERS", counters.as_str()),
            ("SOFTCUDA_MULTIPROCESSORS", multiprocessors),
        ];
        let mut save = args.clone();
        save.extend(["--save", model.as_str()]);
        ok(&place, &settings, &save);
        let counted = fs::read_to_string(place.path(&counters)).unwrap();
        let launches = |kernel: &str| -> u64 {
            let lines = counted.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            let of = |line: serde_json::Value| {
                let kernels = line["counters"]["kernels"].as_object().unwrap().clone();
                let named = kernels.iter().filter(|(name, _)| name.starts_with(kernel));
                named.map(|(_, counts)| counts["launches"].as_u64().unwrap()).sum::<u64>()
            };
            lines.map(of).max().unwrap()
        };
        let [back, forward] = kernels.map(launches);
        println!("RECURVE_CUDA_PATH={path}: {back} and {forward} launches of {kernels:?}");
        assert!(back > 0 && forward > 0, "{counted}");
        for others in every.into_iter().filter(|others| !kernels[0].starts_with(others)) {
            assert_eq!(launches(others), 0, "{others}: {counted}");
        }
        models.push(fs::read(place.path(&model)).unwrap());
    }
    assert!(models[..4].iter().all(|model| *model == models[0]), "the fused path's model has other bytes");
    assert!(
        models[4..].iter().all(|model| *model == models[4]),
        "the persistent path's model has other bytes"
    );

    let output = run(&place, &[("RECURVE_CUDA_PATH", "fast")], &args);
    let error = text(&output.stderr);
    println!("{error}");
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.contains(
            "RECURVE_CUDA_PATH: found \"fast\", expected one of best, steps, unfused, persistent, cells"
        ),
        "{error}"
    );
}

#[test]
fn info_lists_the_device_and_every_kernel_without_spills() {
    let place = Place::new();
    let out = ok(&place, &[], &["info"]);
    assert!(out.contains("device cuda:0") && out.contains("committed PTX"), "{out}");
    for kernel in [
        "fused_step_h32_e16",
        "fused_forward_h64_e32",
        "fused_step_h32_e64_bf16",
        "fused_steps_h64_e32_f16",
        "fused_forward_h64_e16_f16",
        "lstm_sequence_backward_h128_bf16",
        "lstm_cell_forward_f16",
        "gemm_tn_bf16",
        "loss_scale",
        "adam_step",
        "sort_tokens",
        "lstm_sequence_forward_h32",
        "lstm_sequence_backward_h64_e32",
        "lstm_cell_backward",
        "gemm_tn",
        "adam",
    ] {
        let line = out.lines().find(|line| line.split_whitespace().any(|word| word == kernel));
        println!("{}", line.unwrap_or_else(|| panic!("{kernel}: {out}")));
    }
    assert!(out.contains("sm_75") && out.contains("sm_90a"), "{out}");
    let fused = out.lines().find(|line| line.starts_with("Steps on CUDA")).unwrap_or_else(|| panic!("{out}"));
    println!("{fused}");
    let none = place.ok(&["info"]);
    assert!(none.contains("device cuda") && none.contains("none"), "{none}");
}

/// The approximate reciprocal of the activations is the one instruction whose bits differ between devices, by a unit in the
/// last place at most. No result may depend on it (`quotient` in common.cuh).
#[test]
fn no_bit_depends_on_the_approximate_reciprocal() {
    let moved_by = |units: i32| {
        let folder = tempfile::tempdir().unwrap();
        let mut moved = 0;
        for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/ptx")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "ptx") {
                continue;
            }
            let mut text = String::new();
            for line in fs::read_to_string(&path).unwrap().lines() {
                text += line;
                text.push('\n');
                if let Some(operands) = line.trim_start().strip_prefix("rcp.approx.ftz.f32 ") {
                    let to = operands.split(',').next().unwrap();
                    text += &format!(
                        "{{ .reg .b32 %bits; mov.b32 %bits, {to}; add.s32 %bits, %bits, {units}; mov.b32 {to}, %bits; }}\n"
                    );
                    moved += 1;
                }
            }
            fs::write(folder.path().join(path.file_name().unwrap()), text).unwrap();
        }
        assert!(moved > 0, "no kernel has an approximate reciprocal");
        folder
    };
    // A model by the fused path, by the sequence's, and by cells.
    let models = |units: i32| {
        let kernels = moved_by(units);
        [("33", "best"), ("33", "unfused"), ("130", "best")].map(|(hidden, path)| {
            let folder = kernels.path().to_str().unwrap();
            let driver = [
                ("RECURVE_CUDA_IMAGE", "committed"),
                ("RECURVE_CUDA_PATH", path),
                ("SOFTCUDA_REPLACE", folder),
            ];
            let place = Driven::new(Some(&driver));
            let (code, out, error) = place.run(&[
                "train",
                "toy.csv",
                "--embed",
                "4",
                "--hidden",
                hidden,
                "--maxlen",
                "8",
                "--batch-size",
                "16",
                "--epochs",
                "1",
                "--device",
                "cuda:0",
                "--save",
                "m.safetensors",
            ]);
            assert_eq!(code, Some(0), "{error}");
            assert!(out.contains("softcuda"), "{out}");
            fs::read(place.folder.path().join("m.safetensors")).unwrap()
        })
    };
    let exact = models(0);
    assert!(models(1) == exact && models(-1) == exact);
    // And they do come from these files.
    assert!(models(1 << 16).iter().zip(&exact).all(|(moved, exact)| moved != exact));
}
