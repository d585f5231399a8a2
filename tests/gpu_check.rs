//! `scripts/gpu-check bundle`: what it packs runs in another folder, without Rust, without the checkout and without a
//! GPU; there it names each part in a dry run, does what the software device can do, and refuses a damaged copy. The
//! programs are those that this test run has built (unoptimised, and without the benches): nothing is built here.
#![cfg(all(feature = "cuda", target_os = "linux"))]
// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PARTS: [&str; 10] =
    ["environment", "bits", "parity", "training", "sanitizer", "peers", "paths", "kernels", "cpu", "profile"];

/// A Python that is new enough, if there is one: the system's own first, as a user's shell may have another.
fn python() -> Option<PathBuf> {
    let new_enough = |python: &Path| {
        let asked = "import sys, lzma; sys.exit(sys.version_info < (3, 11))";
        Command::new(python).args(["-c", asked]).output().is_ok_and(|output| output.status.success())
    };
    let asked = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
    let other = asked.ok().map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    [Some(PathBuf::from("/usr/bin/python3")), other].into_iter().flatten().find(|python| new_enough(python))
}

/// The newest program that cargo has built of a test.
fn test_program(name: &str) -> Option<PathBuf> {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    let named = |path: &PathBuf| {
        let file = path.file_name().and_then(|file| file.to_str()).and_then(|file| file.rsplit_once('-'));
        path.extension().is_none() && file.is_some_and(|(stem, _)| stem == name)
    };
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(named);
    all.max_by_key(|path| path.metadata().and_then(|about| about.modified()).ok())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// The bundle's `run` with an empty environment, from a folder of its own.
fn run(python: &Path, bundle: &Path, elsewhere: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(python);
    command.arg(bundle.join("run")).args(args).current_dir(elsewhere);
    // Whatever GPU the machine has, there is none here.
    command.env_clear().env("CUDA_VISIBLE_DEVICES", "");
    command.output().unwrap()
}

fn record(path: PathBuf) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_bundle_runs_elsewhere() {
    let Some(python) = python() else {
        println!("skipped: scripts/gpu-check needs Python 3.11 or later");
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    for folder in ["built", "elsewhere"] {
        fs::create_dir(at(folder)).unwrap();
    }
    symlink(env!("CARGO_BIN_EXE_recurve"), at("built/recurve")).unwrap();
    symlink(softcuda::library().unwrap(), at("built/libsoftcuda.so")).unwrap();
    let program = test_program("cuda_numbers");
    match &program {
        Some(program) => symlink(program, at("built/cuda_numbers")).unwrap(),
        None => println!("without cuda_numbers, which was not built"),
    }

    let made = Command::new(&python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu-check"))
        .args(["bundle", "--level", "0", "--built"])
        .args([at("built"), at("first place")])
        .env_remove("RECURVE_IMDB")
        .output()
        .unwrap();
    let text = said(&made);
    assert!(made.status.success(), "{text}");
    assert!(text.contains("lacks ops"), "{text}");
    fs::rename(at("first place"), at("bundle")).unwrap();
    fs::remove_dir_all(at("built")).unwrap();
    let files = fs::read_dir(at("bundle")).unwrap().count();
    assert_eq!(files, 3, "run, bundle.json and the payload");

    let dry = run(&python, &at("bundle"), &at("elsewhere"), &["--dry-run"]);
    let text = said(&dry);
    println!("{text}");
    assert!(dry.status.success(), "{text}");
    for part in PARTS {
        assert!(text.contains(&format!("\n{part}: ")), "{part} is not named: {text}");
    }
    assert!(text.contains("starts here: recurve"), "{text}");
    assert!(program.is_none() || text.contains("three_training_steps_have_the_committed_bits"), "{text}");
    assert_eq!(fs::read_dir(at("elsewhere")).unwrap().count(), 0, "a dry run writes nothing");

    // No nvidia-smi on an empty path: as on a machine without a GPU.
    let without = run(&python, &at("bundle"), &at("elsewhere"), &["--parts", "parity,kernels"]);
    assert_eq!(without.status.code(), Some(1), "{}", said(&without));
    let found = record(at("elsewhere/results/gpu-check.json"));
    let why = found["parts"][1]["why"].as_str().unwrap();
    assert!(why.contains("no NVIDIA GPU") && why.contains("lacks ops"), "{why}");

    let soft = ["--device", "softcuda", "--parts", "environment,training,peers", "--out", "soft"];
    let soft = run(&python, &at("bundle"), &at("elsewhere"), &soft);
    let found = record(at("elsewhere/soft/gpu-check-softcuda.json"));
    assert_eq!(soft.status.code(), Some(1), "the peers need a GPU: {}", said(&soft));
    let training = &found["parts"][1];
    assert_eq!(training["status"], "passed", "{}", training);
    assert_eq!(training["results"]["made-up-softcuda"]["device"]["device"], "cuda:0");
    assert_eq!(found["parts"][2]["status"], "not run");
    let table = fs::read_to_string(at("elsewhere/soft/gpu-check-softcuda.md")).unwrap();
    assert!(table.starts_with("# recurve on the software CUDA device (softcuda): not a GPU"), "{table}");

    let payload = at("bundle/payload.tar.xz");
    let mut bytes = fs::read(&payload).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&payload, bytes).unwrap();
    let damaged = run(&python, &at("bundle"), &at("elsewhere"), &["--dry-run"]);
    assert!(!damaged.status.success() && said(&damaged).contains("not copied whole"), "{}", said(&damaged));
}
