//! Looking at a training: TensorBoard's event files decoded again, pictures of curves, and the shells' completions.
//! `scripts/interop` reads the event files with TensorBoard's own code.

// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

#[path = "cli/place.rs"]
mod place;

use place::{Place, SMALL, toy_csv, with};
use recurve::tensorboard::Writer;
use std::fs;
use std::path::{Path, PathBuf};

// ---------------------------------------------------------------- event files

/// CRC-32C bit by bit, apart from the writer's table.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

fn masked(data: &[u8]) -> u32 {
    let crc = crc32c(data);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[derive(Debug, Default, PartialEq)]
struct Event {
    wall_time: f64,
    step: u64,
    file_version: String,
    scalars: Vec<(String, f32)>,
}

/// One value of a message: field, wire type, and the number or the bytes.
fn fields(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(data: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = data[0];
            *data = &data[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !data.is_empty() {
        let key = varint(&mut data);
        let length = match key & 7 {
            0 => {
                found.push((key >> 3, varint(&mut data).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut data) as usize,
            5 => 4,
            wire => panic!("wire type {wire}"),
        };
        found.push((key >> 3, data[..length].to_vec()));
        data = &data[length..];
    }
    found
}

fn event(data: &[u8]) -> Event {
    let mut event = Event::default();
    for (field, value) in fields(data) {
        match field {
            1 => event.wall_time = f64::from_le_bytes(value.try_into().unwrap()),
            2 => event.step = u64::from_le_bytes(value.try_into().unwrap()),
            3 => event.file_version = String::from_utf8(value).unwrap(),
            5 => {
                for (field, value) in fields(&value) {
                    assert_eq!(field, 1);
                    let entry = fields(&value);
                    assert_eq!(entry.iter().map(|(field, _)| *field).collect::<Vec<_>>(), [1, 2]);
                    let tag = String::from_utf8(entry[0].1.clone()).unwrap();
                    event.scalars.push((tag, f32::from_le_bytes(entry[1].1.clone().try_into().unwrap())));
                }
            }
            other => panic!("field {other}"),
        }
    }
    event
}

/// The events of one file, every checksum compared.
fn events(path: &Path) -> Vec<Event> {
    let bytes = fs::read(path).unwrap();
    let mut rest = &bytes[..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let number = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(number(8), masked(&rest[..8]), "the length's checksum");
        let data = &rest[12..12 + length];
        assert_eq!(number(12 + length), masked(data), "the data's checksum");
        found.push(event(data));
        rest = &rest[16 + length..];
    }
    assert_eq!(found[0].file_version, "brain.Event:2");
    assert!(found.windows(2).all(|pair| pair[0].wall_time <= pair[1].wall_time));
    found.remove(0);
    found
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn an_event_file_holds_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("runs/1");
    let mut writer = Writer::create(&folder).unwrap();
    assert!(writer.is_fresh());
    writer.scalars(1, &[("loss/train", 0.5), ("accuracy/train", -0.25)]).unwrap();
    // What was written is there while the writer goes on.
    assert_eq!(events(writer.path()).len(), 1);
    writer.scalars(u32::MAX, &[("größe", 1e300)]).unwrap();
    let found = events(writer.path());
    assert_eq!(found[0].step, 1);
    assert_eq!(found[0].scalars, [("loss/train".to_string(), 0.5), ("accuracy/train".to_string(), -0.25)]);
    assert_eq!((found[1].step, found[1].scalars[0].1), (u64::from(u32::MAX), f32::INFINITY));
    assert!(found[0].wall_time > 1.7e9, "{}", found[0].wall_time);

    // Another file beside it in the same second.
    let second = Writer::create(&folder).unwrap();
    assert!(!second.is_fresh());
    assert_ne!(second.path(), writer.path());
    assert_eq!(files(&folder).len(), 2);
}

#[test]
fn a_training_writes_the_reports_figures_and_a_resumed_one_a_file_more() {
    let place = Place::new();
    place.write("toy.csv", &toy_csv(200));
    place.ok(&with(&["train", "toy.csv", "--epochs", "2", "--tensorboard", "tb"], &SMALL));
    let folder = place.path("tb/1-toy");
    let [first] = &files(&folder)[..] else { panic!("{:?}", files(&folder)) };
    let found = events(first);
    let report = place.json("runs/1-toy/report.json");
    assert_eq!(found.iter().map(|event| event.step).collect::<Vec<_>>(), [1, 2]);
    for (event, epoch) in found.iter().zip(report["epochs"].as_array().unwrap()) {
        for (tag, field) in [
            ("loss/train", "loss"),
            ("accuracy/train", "accuracy"),
            ("loss/validation", "validation_loss"),
            ("accuracy/validation", "validation_accuracy"),
            ("loss/test", "test_loss"),
            ("accuracy/test", "test_accuracy"),
        ] {
            let value = event.scalars.iter().find(|(name, _)| name == tag).map(|(_, value)| *value);
            assert_eq!(value, Some(epoch[field].as_f64().unwrap() as f32), "{tag}");
        }
        let rows = report["data"]["train_rows"].as_f64().unwrap();
        let rate = rows / epoch["train_seconds"].as_f64().unwrap();
        assert!(event.scalars.contains(&("speed/examples_per_s".into(), rate as f32)), "{event:?}");
    }

    let last = "runs/1-toy/last.safetensors";
    place.ok(&["train", "--resume", last, "--epochs", "3", "--tensorboard", "tb"]);
    let all = files(&folder);
    assert_eq!(all.len(), 2, "{all:?}");
    let steps: Vec<u64> = all.iter().flat_map(|file| events(file)).map(|event| event.step).collect();
    assert_eq!(steps, [1, 2, 3]);

    // Not watched before: the earlier epochs come first, without a speed that nobody measured.
    place.ok(&["train", "--resume", last, "--epochs", "4", "--tensorboard", "other"]);
    let found = events(&files(&place.path("other/1-toy"))[0]);
    assert_eq!(found.iter().map(|event| event.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!((found[0].scalars.len(), found[3].scalars.len()), (6, 7));

    place.write("a-file", "");
    let error = place.fails(1, &["train", "--resume", last, "--epochs", "5", "--tensorboard", "a-file"]);
    assert!(error.contains("a-file"), "{error}");
}

// ---------------------------------------------------------------- pictures

#[test]
#[cfg(feature = "plot")]
fn plot_draws_runs_reports_and_models() {
    let place = Place::new();
    place.write("toy.csv", &toy_csv(200));
    for seed in ["1", "2"] {
        place.ok(&with(&["train", "toy.csv", "--epochs", "2", "--seed", seed], &SMALL));
    }
    let said = place.ok(&["plot"]);
    assert!(said.contains("curves.svg: 2-toy (2 epochs)"), "{said}");
    let svg = fs::read_to_string(place.path("curves.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.contains("<title>Loss and accuracy by epoch: 2-toy</title>"));
    for word in ["Loss", "Accuracy", "epoch", "training", "validation", "test", "cross entropy, nats"] {
        assert!(svg.contains(word), "{word}");
    }
    // Three parts of two epochs in two panels, and a dot for each in the legend.
    assert_eq!(svg.matches("<circle").count(), 3 * 2 * 2 + 3);

    let both = ["plot", "runs/1-toy/report.json", "runs/2-toy/last.safetensors", "-o", "both.svg"];
    let said = place.ok(&both);
    assert!(said.contains("1-toy (2 epochs), 2-toy (2 epochs)"), "{said}");
    let svg = fs::read_to_string(place.path("both.svg")).unwrap();
    assert!(svg.contains("1-toy, training") && svg.contains("2-toy, test"));
    place.ok(&both);
    assert_eq!(fs::read_to_string(place.path("both.svg")).unwrap(), svg, "the same picture again");

    place.write("no.json", "{\"epochs\": [1]}");
    place.write("none.json", "{\"epochs\": []}");
    for (args, code, words) in [
        (&["plot", "no.json"][..], 1, &["no.json", "no report"][..]),
        (&["plot", "none.json"], 1, &["none.json", "no epoch"]),
        (&["plot", "nowhere"], 1, &["nowhere", "read"]),
        (&["plot", "-o", "curves.png"], 2, &["--output", ".svg"]),
        (&["plot", "--runs", "empty"], 1, &["empty", "recurve train"]),
    ] {
        let error = place.fails(code, args);
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

/// Whatever the figures are, there is a picture.
#[test]
#[cfg(feature = "plot")]
fn every_history_can_be_drawn() {
    use recurve::metrics::EpochMetrics;
    use recurve::plot::{Curves, MOST, svg};
    let epoch = |epoch, loss, accuracy| EpochMetrics {
        epoch,
        loss,
        accuracy,
        validation_loss: None,
        validation_accuracy: None,
        test_loss: None,
        test_accuracy: None,
    };
    let curves = |epochs: Vec<EpochMetrics>| Curves { name: "a <run> & more".into(), epochs };
    for epochs in [
        vec![epoch(1, 0.7, 0.5)],
        vec![epoch(7, 0.0, 0.0), epoch(8, 0.0, 1.0)],
        vec![epoch(1, 1e-12, 1.0), epoch(2, 1e30, 1.0)],
        vec![epoch(1, f64::NAN, f64::INFINITY)],
        (1..=3000).map(|k| epoch(k, 1.0 / f64::from(k), 0.9)).collect(),
    ] {
        let text = svg(&[curves(epochs)]).unwrap();
        assert!(text.contains("a &lt;run&gt; &amp; more") && !text.contains("NaN") && !text.contains("inf"));
    }
    assert!(svg(&[curves(Vec::new())]).is_err() && svg(&[]).is_err());
    let many = vec![curves(vec![epoch(1, 0.7, 0.5)]); MOST + 1];
    assert!(svg(&many[1..]).is_ok() && svg(&many).is_err());
}

// ---------------------------------------------------------------- completions

#[test]
fn every_shell_has_completions() {
    let place = Place::new();
    for (shell, word) in [
        ("bash", "complete -F _recurve"),
        ("zsh", "#compdef recurve"),
        ("fish", "complete -c recurve"),
        ("powershell", "Register-ArgumentCompleter"),
        ("elvish", "edit:completion:arg-completer[recurve]"),
    ] {
        let script = place.ok(&["completions", shell]);
        assert!(script.contains(word), "{shell}: {script}");
        assert!(script.contains("tensorboard") && script.contains("predict"), "{shell}");
    }
    let error = place.fails(2, &["completions", "csh"]);
    assert!(error.contains("bash"), "{error}");
}

/// The script that bash gets is one that bash can read, and it completes a subcommand.
#[test]
fn bash_reads_its_completions() {
    let place = Place::new();
    place.write("completions", &place.ok(&["completions", "bash"]));
    let asked = "source completions; COMP_WORDS=(recurve pre); COMP_CWORD=1; _recurve recurve pre recurve; \
                 echo ${COMPREPLY[@]}";
    let Ok(output) =
        std::process::Command::new("bash").args(["-c", asked]).current_dir(place.path("")).output()
    else {
        println!("skipped: there is no bash");
        return;
    };
    assert_eq!(place::text(&output.stdout).trim(), "predict", "{}", place::text(&output.stderr));
}
