//! Where the binary is run, shared by the tests that do so.

#![allow(dead_code)] // each test program uses its part

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// An empty folder that the binary runs in, cut off from the user's own data and GPUs.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_recurve"));
        command
            .args(args)
            .current_dir(self.0.path())
            .env("RECURVE_DATA", self.path("data"))
            .env("KERAS_HOME", self.path("keras"))
            // Whatever GPU the machine has, `auto` is the CPU here.
            .env("CUDA_VISIBLE_DEVICES", "")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Standard output of a run that must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}\n{}", output.status, text(&output.stderr));
        text(&output.stdout)
    }

    /// Standard error of a run that must fail with this code, without a panic.
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
        stderr
    }

    pub fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Rows that a small model learns at once: the label is the text's last word.
pub fn toy_csv(rows: usize) -> String {
    let mut csv = String::from("id,text,label\n");
    for row in 0..rows {
        let (word, label) = if row % 2 == 0 { ("good", "yes") } else { ("bad", "no") };
        csv += &format!("{row},\"this one, number {row}, is {word}\",{label}\n");
    }
    csv
}

pub const SMALL: [&str; 8] = ["--embed", "4", "--hidden", "5", "--maxlen", "8", "--batch-size", "16"];

pub fn with(args: &[&'static str], more: &[&'static str]) -> Vec<&'static str> {
    [args, more].concat()
}
