//! The binary on CUDA as a user meets it, and everything that can be wrong with a driver or a device. The software
//! device is preloaded as the driver, and is told by environment variables what to lack.
#![cfg(all(feature = "cuda", target_os = "linux"))]
// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::{Command, Stdio};

/// An empty folder with a small data set, and a driver whose shortcomings are these variables.
struct Place {
    folder: tempfile::TempDir,
    driver: Option<Vec<(&'static str, &'static str)>>,
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

impl Place {
    fn new(driver: Option<&[(&'static str, &'static str)]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut csv = String::from("text,label\n");
        for row in 0..80 {
            let (word, label) = if row % 2 == 0 { ("good", "yes") } else { ("bad", "no") };
            csv += &format!("\"this one, number {row}, is {word}\",{label}\n");
        }
        fs::write(folder.path().join("toy.csv"), csv).unwrap();
        Self { folder, driver: driver.map(<[_]>::to_vec) }
    }

    /// Exit code, standard output and standard error.
    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_recurve"));
        command.args(args).current_dir(self.folder.path()).env("RECURVE_DATA", "data").stdin(Stdio::null());
        if let Some(driver) = &self.driver {
            command.env("LD_PRELOAD", softcuda::library().unwrap()).env("SOFTCUDA_QUIET", "1");
            command.envs(driver.iter().copied());
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
    let place = Place::new(None);
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
    Place::new(Some(&[("SOFTCUDA_DEVICES", "0")])).refuses(&["it sees no GPU"]);
}

#[test]
fn a_driver_too_old_for_the_ptx() {
    Place::new(Some(&[("SOFTCUDA_DRIVER_VERSION", "12000")])).refuses(&[
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        "the driver is for CUDA 12.0",
        "12.1 or newer; update it",
    ]);
}

#[test]
fn an_architecture_too_old_for_the_kernels() {
    Place::new(Some(&[("SOFTCUDA_COMPUTE_CAPABILITY", "7.0")]))
        .refuses(&["compute capability 7.0", "need 7.5"]);
}

#[test]
fn a_device_number_chooses_and_a_wrong_one_is_named() {
    let place = Place::new(Some(&[("SOFTCUDA_DEVICES", "2")]));
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
        let place = Place::new(Some(&[("RECURVE_CUDA_IMAGE", choice)]));
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
    let place = Place::new(Some(&[("RECURVE_CUDA_IMAGE", "newest")]));
    let (code, _, error) = place.train("cuda");
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("expected best, built or committed"), "{error}");
}

#[test]
fn out_of_memory_says_how_much_was_asked_for() {
    let place = Place::new(Some(&[("SOFTCUDA_MEMORY", "20000")]));
    let (code, _, error) = place.train("cuda");
    println!("{error}");
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("were asked for") && error.contains("KiB are free"), "{error}");
    assert!(error.contains("smaller batch") && error.contains("--device cpu"), "{error}");
}

#[test]
fn a_launch_that_fails_midway_leaves_the_checkpoint() {
    // The first epoch is done by then, the second is not: an epoch of 4 steps of 13 kernels, then evaluations.
    let place = Place::new(Some(&[("SOFTCUDA_FAIL_LAUNCH", "90")]));
    let (code, out, error) = place.train("cuda");
    println!("{error}");
    assert_eq!(code, Some(1), "{out}{error}");
    assert!(out.contains("Epoch 1, ") && !out.contains("Epoch 2, "), "{out}");
    assert!(error.contains("training, by step") && error.contains("CUDA_ERROR_LAUNCH_FAILED"), "{error}");
    assert!(error.contains("the checkpoint file is not: continue from it"), "{error}");
    // On another device.
    let run = fs::read_dir(place.folder.path().join("runs")).unwrap().next().unwrap().unwrap().path();
    let last = run.join("last.safetensors");
    let (code, out, error) = place.run(&["train", "--resume", last.to_str().unwrap(), "--device", "cpu"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("Epoch 2, "), "{out}");
}
