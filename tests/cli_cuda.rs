//! `--device cuda` as a user runs it, on the software device: it is preloaded into the binary in the driver's place, and
//! set by its environment to be old, small or broken. Linux only, as the software device is.

#![cfg(all(target_os = "linux", feature = "cuda"))]
// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

#[path = "cli/place.rs"]
mod place;

use place::{Place, SMALL, text, toy_csv, with};
use std::fs;
use std::process::Output;

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

const TRAIN: [&str; 6] = ["train", "mine.csv", "--epochs", "2", "--lr", "0.02"];

#[test]
fn train_eval_and_predict_run_on_the_device() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(120));
    let args = with(&TRAIN, &SMALL);
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

#[test]
fn auto_takes_the_device_and_says_so_or_says_why_not() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(40));
    let args = with(&["train", "mine.csv", "--epochs", "1"], &SMALL);
    assert!(device_line(&ok(&place, &[], &args)).contains("cuda:0"));
    // No driver: the CPU, without a word, as most machines have none.
    let line = place.ok(&args);
    let line = device_line(&line);
    assert!(line.contains("cpu") && !line.contains("auto:"), "{line}");
    for (setting, says) in [
        (("SOFTCUDA_DEVICES", "0"), "no GPU"),
        (("SOFTCUDA_DRIVER_VERSION", "11080"), "11.8"),
        (("SOFTCUDA_COMPUTE_CAPABILITY", "6.1"), "6.1"),
    ] {
        let out = ok(&place, &[setting], &args);
        let line = device_line(&out);
        assert!(line.contains("cpu") && line.contains("auto:") && line.contains(says), "{setting:?}: {line}");
    }
}

#[test]
fn a_device_that_cannot_be_used_says_what_was_found_and_what_to_do() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(40));
    let args = with(&["train", "mine.csv", "--epochs", "1"], &SMALL);
    let cuda = with(&args, &["--device", "cuda"]);
    let no_driver = place.fails(1, &cuda);
    assert!(no_driver.contains("driver") && no_driver.contains("--device cpu"), "{no_driver}");
    for (setting, says) in [
        (("SOFTCUDA_DEVICES", "0"), "no GPU"),
        (("SOFTCUDA_DRIVER_VERSION", "11080"), "11.8"),
        (("SOFTCUDA_COMPUTE_CAPABILITY", "6.1"), "6.1"),
        (("SOFTCUDA_MEMORY", "20000"), "memory"),
    ] {
        let error = fails(&place, &[setting], &cuda);
        assert!(error.contains(says) && error.contains("cuda:0"), "{setting:?}: {error}");
        assert!(error.contains("--device cpu"), "what to do, {setting:?}: {error}");
    }
    let error = fails(&place, &[], &with(&args, &["--device", "cuda:7"]));
    assert!(error.contains("cuda:7") && error.contains("no such device"), "{error}");
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
    assert!(kernels > 100, "{counters}");
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
fn info_lists_the_device_and_every_kernel_without_spills() {
    let place = Place::new();
    let out = ok(&place, &[], &["info"]);
    assert!(out.contains("device cuda:0") && out.contains("committed PTX"), "{out}");
    for kernel in [
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
    let none = place.ok(&["info"]);
    assert!(none.contains("device cuda") && none.contains("none"), "{none}");
}
