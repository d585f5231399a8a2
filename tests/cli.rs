//! The binary as a user runs it. What computes is the CPU back end unless a test names another.

// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

#[path = "cli/place.rs"]
mod place;

use place::{Place, SMALL, text, toy_csv, with};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn train_then_predict_eval_export_info_on_the_embedded_set() {
    let place = Place::new();
    let out =
        place.ok(&["train", "--epochs", "2", "--seed", "3", "--report", "r.json", "--save", "m.safetensors"]);
    assert!(out.contains("embedded movie-review snippets") && out.contains("recurve fetch imdb"), "{out}");
    assert!(out.contains("naive Bayes") && out.contains("166338 parameters"), "{out}");
    let lines: Vec<&str> = out.lines().filter(|line| line.starts_with("Epoch ")).collect();
    assert_eq!(lines.len(), 2, "{out}");
    for part in ["Epoch 1, Loss: 0.", ", Accuracy: ", ", Test Loss: 0.", ", Test Accuracy: "] {
        assert!(lines[0].contains(part), "{out}");
    }

    // The report says what ran and what came out.
    let report = place.json("r.json");
    assert_eq!(report, place.json("runs/1-sample/report.json"));
    assert_eq!(report["parameters"], 166_338);
    assert_eq!(report["seed"], 3);
    assert_eq!(report["device"]["device"], "cpu");
    assert_eq!(report["epochs"].as_array().unwrap().len(), 2);
    for key in ["epoch", "loss", "accuracy", "test_loss", "test_accuracy", "train_seconds", "eval_seconds"] {
        assert!(report["epochs"][1][key].is_number(), "{key}: {report}");
    }
    let accuracy = report["epochs"][1]["test_accuracy"].as_f64().unwrap();
    assert!((0.6..0.9).contains(&accuracy), "test accuracy after two epochs: {accuracy}");
    assert_eq!(
        fs::read(place.path("m.safetensors")).unwrap(),
        fs::read(place.path("runs/1-sample/last.safetensors")).unwrap()
    );

    // Raw text is answered with the model's own words.
    let out = place.ok(&["predict", "a moving, beautifully acted film", "a dull and stupid mess"]);
    let labels: Vec<&str> = out.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(labels, ["positive", "negative"], "{out}");
    let out = place.ok(&["predict", "--json", "a moving, beautifully acted film"]);
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(answer["label"], "positive");
    let sum: f64 = answer["probabilities"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-6);

    // The evaluation of the last model repeats the last epoch's figures.
    let out = place.ok(&["eval", "--model", "m.safetensors", "--json"]);
    let evaluation: serde_json::Value = serde_json::from_str(&out).unwrap();
    for (key, epoch_key) in [("loss", "test_loss"), ("accuracy", "test_accuracy")] {
        let difference = evaluation[key].as_f64().unwrap() - report["epochs"][1][epoch_key].as_f64().unwrap();
        assert!(difference.abs() < 1e-12, "{key}: {difference}");
    }
    let confusion: u64 = evaluation["confusion"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| row.as_array().unwrap())
        .map(|n| n.as_u64().unwrap())
        .sum();
    assert_eq!(confusion, report["data"]["test_rows"].as_u64().unwrap());
    assert!(evaluation["auc"].as_f64().unwrap() > 0.6);
    assert!(place.ok(&["eval"]).contains("Macro F1"));

    // Models go out in every format and come back as the start of a training.
    let keras: &[&str] = if cfg!(feature = "keras") { &["w.keras", "w.weights.h5"] } else { &[] };
    for &file in ["w.npz", "w.safetensors"].iter().chain(keras) {
        assert!(place.ok(&["export", "--to", file]).contains("166338 parameters"));
        let out = place.ok(&["train", "sample", "--init", file, "--epochs", "1", "--num-words", "10000"]);
        let loss: f64 =
            out.split("Epoch 1, Loss: ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
        assert!(loss < 0.6, "{file}: a trained start, but loss {loss}");
    }
    // Where the file holds the words, it predicts from text too; `--model` is left out for our own newest model.
    assert!(place.ok(&["export", "--to", "w.onnx"]).contains("166338 parameters"));
    let text = "a moving, beautifully acted film";
    let ours = place.ok(&["predict", "--model", "m.safetensors", text]);
    place.ok(&["export", "--model", "m.safetensors", "--to", "pytorch.safetensors"]);
    assert_eq!(place.ok(&["predict", "--model", "pytorch.safetensors", text]), ours);
    if cfg!(feature = "keras") {
        place.ok(&["export", "--model", "m.safetensors", "--to", "m.keras"]);
        assert_eq!(place.ok(&["predict", "--model", "m.keras", text]), ours);
        assert!(place.ok(&["info", "--model", "m.keras"]).contains("Embedding(10000, 16)"));
        assert!(place.fails(1, &["eval", "--model", "m.keras"]).contains("name a labelled file"));
        assert!(
            place.fails(2, &["predict", "--model", "m.keras", "--words", "imdb", text]).contains("--words")
        );
        // Where it does not, they can be named.
        place.ok(&["export", "--model", "m.safetensors", "--to", "m.weights.h5"]);
        assert!(place.fails(1, &["predict", "--model", "m.weights.h5", text]).contains("--words"));
        place.write("words.json", r#"{"film": 1, "a": 2}"#);
        let named = ["predict", "--model", "m.weights.h5", "--words", "words.json", text];
        assert!(place.ok(&named).starts_with(['0', '1']));
    }
    let contradiction = place.fails(2, &["train", "sample", "--init", "w.npz", "--hidden", "33"]);
    assert!(contradiction.contains("--hidden") && contradiction.contains("32"), "{contradiction}");
    assert!(place.ok(&["info", "--model", "m.safetensors"]).contains("lstm/recurrent_kernel"));
    assert!(place.ok(&["info"]).contains("device cpu"));
}

#[test]
fn own_csv_is_trained_on_and_annotated() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(200));
    let out = place.ok(&with(&["train", "mine.csv", "--epochs", "30", "--lr", "0.02"], &SMALL));
    assert!(out.contains("text from mine.csv: 144 training, 16 validation, 40 test rows"), "{out}");
    let out = place.ok(&["eval", "mine.csv"]);
    assert!(out.contains("Accuracy: 100.00"), "{out}");
    let warned = text(&place.run(&["eval", "mine.csv"]).stderr);
    assert!(warned.contains("trained on"), "{warned}");
    let warned = text(&place.run(&["eval"]).stderr);
    assert!(!warned.contains("warning"), "the held-out rows all differ from the training rows: {warned}");

    place.write("new.csv", "text,extra\n\"this one, number 7, is good\",\"a, b\"\nthis one is bad,\n");
    place.ok(&["predict", "--input", "new.csv", "--output", "out.csv"]);
    let out = fs::read_to_string(place.path("out.csv")).unwrap();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "text,extra,predicted,p_no,p_yes");
    assert!(lines[1].starts_with("\"this one, number 7, is good\",\"a, b\",yes,"), "{out}");
    assert!(lines[2].starts_with("this one is bad,,no,"), "{out}");

    place.write("new.jsonl", "{\"text\": \"it is good\", \"n\": 1e400}\n");
    place.ok(&["predict", "--input", "new.jsonl", "--output", "out.jsonl"]);
    let out = fs::read_to_string(place.path("out.jsonl")).unwrap();
    assert!(out.starts_with("{\"text\": \"it is good\", \"n\": 1e400"), "{out}");

    // A test file of its own.
    place.write("test.csv", "text,label\nthis is good,yes\nthis is bad,no\nso bad,no\n");
    let out = place.ok(&with(&["train", "mine.csv", "--test", "test.csv", "--epochs", "1"], &SMALL));
    assert!(out.contains("180 training, 20 validation, 3 test rows"), "{out}");

    // A label that training never saw has no class.
    place.write("odd.csv", "text,label\na,maybe\n");
    let error = place.fails(1, &["eval", "odd.csv"]);
    assert!(error.contains("odd.csv") && error.contains("maybe"), "{error}");
    // Columns of other names.
    place.write("named.tsv", "review\tstars\ngood\t5\nbad\t1\ngood good\t5\nbad bad\t1\n");
    let error = place.fails(1, &["train", "named.tsv"]);
    assert!(error.contains("--text-column") && error.contains("review"), "{error}");
    let args = ["train", "named.tsv", "--text-column", "review", "--label-column", "stars", "--epochs", "1"];
    place.ok(&with(&args, &["--test-fraction", "0", "--validation-fraction", "0"]));
}

#[test]
fn lines_of_standard_input_are_answered_one_by_one() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(60));
    place.ok(&with(&["train", "mine.csv", "--epochs", "1"], &SMALL));
    let mut child =
        place.command(&["predict", "--json"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in ["one is good", "", "zwei \u{1f600}"] {
        // The next line is only sent once this one is answered.
        writeln!(input, "{line}").unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
        assert_eq!(answer["text"], line);
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn wrong_usage_has_code_2_and_says_what_is_expected() {
    let place = Place::new();
    for (args, says) in [
        (&["train", "--classes", "1"][..], "constant 1.0"),
        (&["train", "--epochs", "0"], "1 to 1000000"),
        (&["train", "--lr", "0"], "above 0"),
        (&["train", "--lr", "nan"], "above 0"),
        (&["train", "--hidden", "0"], "whole number from 1"),
        (&["train", "--hidden", "many"], "whole number from 1"),
        (&["train", "--num-words", "3"], "from 4"),
        (&["train", "--test-fraction", "1"], "below 1"),
        (&["train", "--padding", "middle"], "pre"),
        (&["train", "--device", "tpu"], "cuda:N"),
        (&["train", "--threads", "1000"], "0 to 256"),
        (&["train", "sample", "--data", "sample"], "cannot be used with"),
        (&["train", "sample", "--test", "x.csv"], "--test"),
        (&["train", "sample", "--save", "model.bin"], ".safetensors"),
        (&["train", "sample", "--patience", "2", "--validation-fraction", "0"], "--validation-fraction"),
        (&["train", "imdb"], "recurve fetch imdb"),
        (&["train", "sample", "--save", "no/such/m.safetensors"], "no/such"),
        (&["train", "sample", "--report", "no/such/r.json"], "no/such"),
        (&["train", "--no-such-flag"], "--no-such-flag"),
        (&["train", "--lr-schedule", "linear"], "constant or cosine"),
        (&["train", "--clip-norm", "-1"], "--clip-norm"),
        (&["train", "--weight-decay", "nan"], "--weight-decay"),
        (&["train", "sample", "--warmup-steps", "2380"], "has 2380 (10 epochs of 238)"),
        (&["train", "--class-weight", "much"], "expected none, balanced, or NAME=WEIGHT"),
        (&["train", "--class-weight", "positive=-1"], "at least 0"),
        (&["train", "sample", "--class-weight", "good=2"], "the classes are negative, positive"),
        (&["train", "sample", "--class-weight", "negative=0,positive=0"], "nothing could be learned"),
        (&["export", "--to", "model.h5"], ".npz"),
        (&["predict", "--input", "a.csv"], "--output"),
        (&["teach"], "teach"),
        (&[], "Usage"),
    ] {
        let stderr = place.fails(2, args);
        assert!(stderr.contains(says), "{args:?} should say {says:?}:\n{stderr}");
    }
    assert!(!place.path("runs").exists(), "wrong usage leaves nothing behind");
}

#[test]
fn failed_work_has_code_1_and_names_the_file_or_device() {
    let place = Place::new();
    place.write("empty.csv", "");
    place.write("bad.npz", "not a zip");
    place.write("bad.safetensors", "not a model");
    for (args, says) in [
        (&["train", "missing.csv"][..], "missing.csv"),
        (&["train", "missing.npz"], "missing.npz"),
        (&["train", "empty.csv"], "empty.csv"),
        (&["train", "bad.npz"], "bad.npz"),
        (&["train", "--resume", "missing.safetensors"], "missing.safetensors"),
        (&["train", "--resume", "bad.safetensors"], "bad.safetensors"),
        (&["train", "--init", "bad.npz"], "bad.npz"),
        (&["train", "--device", "cuda:99"], "device cuda:99: "),
        (&["predict", "hello"], "recurve train"),
        (&["eval"], "recurve train"),
        (&["info", "--model", "bad.safetensors"], "bad.safetensors"),
    ] {
        let stderr = place.fails(1, args);
        assert!(stderr.contains(says), "{args:?} should say {says:?}:\n{stderr}");
    }
}

#[test]
fn help_shows_every_flag_with_its_default() {
    let place = Place::new();
    let help = place.ok(&["train", "--help"]);
    for flag in [
        "--data",
        "--test",
        "--num-words",
        "--maxlen",
        "--padding",
        "--truncating",
        "--embed",
        "--hidden",
        "--classes",
        "--epochs",
        "--batch-size",
        "--lr",
        "--lr-schedule",
        "--warmup-steps",
        "--clip-norm",
        "--weight-decay",
        "--class-weight",
        "--shuffle-buffer",
        "--seed",
        "--device",
        "--threads",
        "--init",
        "--save",
        "--resume",
        "--report",
        "--validation-fraction",
        "--patience",
        "--test-fraction",
        "--text-column",
        "--label-column",
    ] {
        assert!(help.contains(flag), "{flag}");
    }
    for default in [
        "[default: 10000]",
        "[default: 16]",
        "[default: 32]",
        "[default: 10]",
        "[default: 0.001]",
        "[default: auto]",
    ] {
        assert!(help.contains(default), "{default}:\n{help}");
    }
}

#[test]
fn an_archive_of_prepared_ids_trains_and_its_model_reads_no_text() {
    let place = Place::new();
    // x_train [40,6] and y_train [40] as NumPy would save them; label 1 where the last id is 5.
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for row in 0..40i64 {
        let last = if row % 2 == 0 { 5 } else { 6 };
        x.extend([0, 0, 1, row % 7, 3, last].map(i64::to_le_bytes).concat());
        y.extend(i64::from(row % 2 == 0).to_le_bytes());
    }
    let npy = |shape: &str, data: &[u8]| {
        let mut header = format!("{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}");
        while (10 + header.len() + 1) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let length = u16::try_from(header.len()).unwrap().to_le_bytes();
        [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), data].concat()
    };
    let mut zip = zip::ZipWriter::new(fs::File::create(place.path("ids.npz")).unwrap());
    for (name, bytes) in [("x_train.npy", npy("(40, 6)", &x)), ("y_train.npy", npy("(40,)", &y))] {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    zip.finish().unwrap();

    let small = ["--embed", "3", "--hidden", "4", "--num-words", "8", "--epochs", "2"];
    let out = place.ok(&with(&["train", "ids.npz"], &small));
    assert!(!out.contains("Test Loss"), "no test part, no test pass: {out}");
    let error = place.fails(2, &with(&["train", "ids.npz", "--maxlen", "7"], &small));
    assert!(error.contains("--maxlen") && error.contains('6'), "{error}");
    let error = place.fails(1, &["train", "ids.npz", "--num-words", "6"]);
    assert!(error.contains("id 6"), "{error}");
    let error = place.fails(1, &["predict", "text"]);
    assert!(error.contains("prepared ids"), "{error}");
    assert!(place.ok(&["eval", "ids.npz"]).contains("40 rows"));
}

#[test]
fn an_imdb_archive_in_the_data_folder_is_found_and_its_words_when_they_are_there() {
    let place = Place::new();
    fs::create_dir(place.path("data")).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/npz/np2-lists-p4.npz");
    fs::copy(fixture, place.path("data/imdb.npz")).unwrap();
    let small = ["--embed", "3", "--hidden", "4", "--num-words", "30", "--epochs", "1"];
    let out = place.ok(&with(&["train"], &small));
    assert!(out.contains("imdb.npz") && out.contains("--data sample"), "auto says what it took: {out}");
    assert!(place.path("runs/1-imdb/best.safetensors").is_file());

    let error = place.fails(1, &["predict", "a film"]);
    assert!(error.contains("recurve fetch imdb"), "{error}");
    // The index has come: the same model reads text now.
    place.write("data/imdb_word_index.json", r#"{"film": 2, "a": 1, "the": 3}"#);
    assert!(place.ok(&["predict", "a film"]).contains("a film"));
    // A gap in the ranks would shift every word behind it.
    place.write("data/imdb_word_index.json", r#"{"film": 2, "the": 3}"#);
    assert!(place.fails(1, &["predict", "a film"]).contains("imdb_word_index.json"));
}

#[cfg(feature = "fetch")]
#[test]
fn a_download_that_fails_says_which_address_and_leaves_nothing_half() {
    let place = Place::new();
    // A server that has nothing.
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", server.local_addr().unwrap());
    let answering = std::thread::spawn(move || {
        let (mut connection, _) = server.accept().unwrap();
        let mut request = [0; 4096];
        let read = std::io::Read::read(&mut connection, &mut request).unwrap();
        let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        connection.write_all(answer.as_bytes()).unwrap();
        text(&request[..read])
    });
    let error = place.fails(1, &["fetch", "imdb", "--url", &url]);
    assert!(error.contains("imdb.npz") && error.contains("404"), "{error}");
    assert!(answering.join().unwrap().starts_with("GET /imdb.npz "));
    assert!(!place.path("data/imdb.npz").exists());
    assert!(place.fails(2, &["fetch", "mnist"]).contains("imdb"));
}

#[test]
fn the_same_seed_gives_the_same_bytes_for_any_number_of_threads() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(100));
    let train = |more: &[&'static str], model: &'static str| {
        let args = with(&["train", "mine.csv", "--epochs", "3", "--save"], &[model]);
        place.ok(&with(&with(&args, &SMALL), more));
        fs::read(place.path(model)).unwrap()
    };
    let first = train(&["--seed", "5"], "a.safetensors");
    assert_eq!(first, train(&["--seed", "5"], "b.safetensors"), "the same command twice");
    for threads in ["1", "2", "3", "8"] {
        let args: [&'static str; 4] = ["--seed", "5", "--threads", threads];
        assert_eq!(first, train(&args, "c.safetensors"), "{threads} threads");
    }
    assert_ne!(first, train(&["--seed", "6"], "d.safetensors"), "another seed");
    let reference = train(&["--seed", "5", "--device", "reference"], "e.safetensors");
    assert_eq!(
        reference,
        train(&["--seed", "5", "--device", "reference"], "f.safetensors"),
        "the reference twice"
    );
}

#[test]
fn resume_goes_on_to_the_bits_of_an_uninterrupted_training() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(100));
    let train = |more: &[&'static str]| place.ok(&with(&with(&["train", "mine.csv"], &SMALL), more));
    train(&["--epochs", "5", "--save", "whole.safetensors"]);
    train(&["--epochs", "2", "--save", "two.safetensors"]);
    place.ok(&["train", "--resume", "two.safetensors", "--epochs", "5", "--save", "resumed.safetensors"]);
    let bytes = |name: &str| fs::read(place.path(name)).unwrap();
    assert!(bytes("whole.safetensors") == bytes("resumed.safetensors"));
    // In a run folder the run goes on in place, and its report holds all epochs.
    place.ok(&["train", "--resume", "runs/2-mine/last.safetensors", "--epochs", "5"]);
    assert!(bytes("whole.safetensors") == bytes("runs/2-mine/last.safetensors"));
    let report = place.json("runs/2-mine/report.json");
    assert_eq!(report["epochs"].as_array().unwrap().len(), 5);
    assert!(report["epochs"][0]["train_seconds"].is_number());

    // Nothing is left to do: nothing changes.
    let out = place.ok(&["train", "--resume", "runs/2-mine/last.safetensors"]);
    assert!(out.contains("Trained 0 steps"), "{out}");
    assert!(bytes("whole.safetensors") == bytes("runs/2-mine/last.safetensors"));

    let error = place.fails(2, &["train", "--resume", "two.safetensors", "--lr", "0.5"]);
    assert!(error.contains("--lr") && error.contains("0.001"), "{error}");
    let error = place.fails(2, &["train", "sample", "--resume", "two.safetensors"]);
    assert!(error.contains("mine.csv"), "{error}");
    place.write("mine.csv", &toy_csv(102));
    let error = place.fails(1, &["train", "--resume", "two.safetensors", "--epochs", "5"]);
    assert!(error.contains("not what this model was trained on"), "{error}");
}

#[test]
fn schedule_decay_clipping_and_class_weights_are_kept_by_resume() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(100));
    let chosen =
        [
            &[
                "--lr-schedule",
                "cosine",
                "--warmup-steps",
                "3",
                "--clip-norm",
                "0.5",
                "--weight-decay",
                "0.01",
            ][..],
            &["--class-weight", "yes=2"],
            &SMALL[..],
        ]
        .concat();
    let train = |more: &[&'static str]| {
        place.ok(&with(&with(&["train", "mine.csv", "--epochs", "4"], &chosen), more))
    };
    let out = train(&["--save", "whole.safetensors", "--report", "r.json"]);
    let config = &place.json("r.json")["config"];
    assert_eq!(config["lr_schedule"], "cosine");
    assert_eq!(config["class_weights"].as_array().unwrap().len(), 2, "{config}");

    // Each of them changes the training.
    for (flag, other) in [
        ("--lr-schedule", "constant"),
        ("--warmup-steps", "0"),
        ("--clip-norm", "0"),
        ("--weight-decay", "0"),
        ("--class-weight", "balanced"),
    ] {
        let mut changed = chosen.clone();
        let at = changed.iter().position(|word| *word == flag).unwrap();
        changed[at + 1] = other;
        let without =
            place.ok(&with(&["train", "mine.csv", "--epochs", "4", "--save", "o.safetensors"], &changed));
        let same = fs::read(place.path("o.safetensors")).unwrap()
            == fs::read(place.path("whole.safetensors")).unwrap();
        assert!(!same, "{flag} {other} changes nothing:\n{out}{without}");
    }

    // All epochs are done: what is typed may repeat what was, and contradict nothing.
    place.ok(&[
        "train",
        "--resume",
        "whole.safetensors",
        "--class-weight",
        "yes=2",
        "--lr-schedule",
        "cosine",
    ]);
    for (more, says) in [
        (["--epochs", "9"], "a cosine over 4"),
        (["--class-weight", "yes=3"], "--class-weight"),
        (["--warmup-steps", "4"], "--warmup-steps"),
        (["--clip-norm", "1"], "--clip-norm"),
        (["--weight-decay", "1"], "--weight-decay"),
        (["--lr-schedule", "constant"], "--lr-schedule"),
    ] {
        let error = place.fails(2, &with(&["train", "--resume", "whole.safetensors"], &more));
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_divergence_stops_with_an_error_and_keeps_the_last_good_model() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(100));
    let error = place.fails(1, &with(&["train", "mine.csv", "--lr", "1e38", "--epochs", "9"], &SMALL));
    assert!(error.contains("diverged") && error.contains("--lr"), "{error}");
}

/// Starts a training that would take long, and waits until its first epoch is done.
#[cfg(unix)]
fn start_long(place: &Place) -> std::process::Child {
    let args = with(&["train", "mine.csv", "--epochs", "4000", "--seed", "5"], &SMALL);
    let mut child = place.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while !lines.next().expect("the training ended").unwrap().starts_with("Epoch ") {}
    // Whoever reads no more would stop the child at a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

#[cfg(unix)]
fn send(signal: &str, child: &std::process::Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_resume_reaches_the_same_bits() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(1000));
    let mut child = start_long(&place);
    send("-INT", &child);
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20), "Ctrl-C was not heeded");
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("--resume runs/1-mine/last.safetensors"), "{stderr}");

    let epochs = recurve::checkpoint::Checkpoint::load(&place.path("runs/1-mine/last.safetensors")).unwrap();
    let total = (epochs.progress.epoch + 2).to_string();
    place.ok(&[
        "train",
        "--resume",
        "runs/1-mine/last.safetensors",
        "--epochs",
        &total,
        "--save",
        "resumed.safetensors",
    ]);
    let whole = ["train", "mine.csv", "--seed", "5", "--epochs", &total, "--save", "whole.safetensors"];
    place.ok(&[&whole[..], &SMALL[..]].concat());
    let bytes = |name: &str| fs::read(place.path(name)).unwrap();
    assert!(bytes("whole.safetensors") == bytes("resumed.safetensors"), "stopped at {:?}", epochs.progress);
}

#[cfg(unix)]
#[test]
fn killed_at_any_moment_a_model_file_loads() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(100));
    let mut rng = recurve::rng::Rng::new(9, recurve::rng::Purpose::User, 0);
    for round in 1..=12 {
        let mut child = start_long(&place);
        std::thread::sleep(Duration::from_micros(rng.below(60_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        let folder = place.path(&format!("runs/{round}-mine"));
        for name in ["last.safetensors", "best.safetensors"] {
            load(&folder.join(name));
        }
        serde_json::from_slice::<serde_json::Value>(
            &fs::read(folder.join("report.json")).unwrap_or(b"{}".to_vec()),
        )
        .expect("a report that is there is whole");
    }
}

#[cfg(unix)]
fn load(path: &Path) {
    if let Err(error) = recurve::checkpoint::Checkpoint::load(path) {
        panic!("{error}");
    }
}

#[test]
fn half_precision_is_the_references_and_says_what_became_of_its_scale() {
    let place = Place::new();
    place.write("mine.csv", &toy_csv(60));
    let reference = ["train", "mine.csv", "--device", "reference", "--epochs", "2"];
    let out = place.ok(&with(&with(&reference, &["--precision", "f16", "--save", "m.safetensors"]), &SMALL));
    assert!(out.contains("rounded to f16 where it would be stored"), "{out}");
    let told = out.lines().find(|line| line.starts_with("Loss scale ")).unwrap_or_else(|| panic!("{out}"));
    let scale = place.json("runs/1-mine/report.json")["loss_scale"].clone();
    let (scale, skipped) = (scale["scale"].as_f64().unwrap(), scale["skipped"].as_u64().unwrap());
    assert!(told.contains(&format!("Loss scale {scale}; of all ")), "{told}");
    assert_eq!(scale, 65536.0 / 2f64.powi(i32::try_from(skipped).unwrap()));
    let info = place.ok(&["info", "--model", "m.safetensors"]);
    assert!(info.contains(", f16"), "{info}");
    // It goes on in its precision, and on what has that.
    let resume = ["train", "--resume", "m.safetensors", "--epochs", "3"];
    let out = place.ok(&with(&resume, &["--device", "reference"]));
    assert!(out.contains("rounded to f16") && out.contains("Epoch 3"), "{out}");
    let error = place.fails(2, &with(&resume, &["--device", "cpu"]));
    assert!(error.contains("--precision") && error.contains("f16 is not there on cpu"), "{error}");
    let error = place.fails(2, &with(&resume, &["--device", "reference", "--precision", "bf16"]));
    assert!(error.contains("--precision") && error.contains("f16"), "{error}");
    // eval in the precision of the training has the training's own figures; in f32 others.
    let loss = |more: &[&'static str]| -> f64 {
        let json = place.ok(&with(&["eval", "--model", "m.safetensors", "--json"], more));
        serde_json::from_str::<serde_json::Value>(&json).unwrap()["loss"].as_f64().unwrap()
    };
    let epochs = place.json("runs/1-mine/report.json")["epochs"].clone();
    let trained = epochs.as_array().unwrap().last().unwrap()["test_loss"].as_f64().unwrap();
    assert_eq!(loss(&["--device", "reference", "--precision", "f16"]), trained);
    assert_ne!(loss(&["--device", "reference"]), trained);
    let half = ["predict", "--model", "m.safetensors", "--precision", "bf16", "this one is good"];
    place.ok(&with(&half, &["--device", "reference"]));
    let error = place.fails(2, &with(&half, &["--device", "cpu"]));
    assert!(error.contains("--precision") && error.contains("bf16 is not there on cpu"), "{error}");
    // Any device can use the model: its parameters are f32.
    let answer = place.ok(&["predict", "--model", "m.safetensors", "--device", "cpu", "this one is good"]);
    assert!(answer.starts_with("yes") || answer.starts_with("no"), "{answer}");

    let out = place.ok(&with(&with(&reference, &["--precision", "bf16"]), &SMALL));
    assert!(out.contains("rounded to bf16") && !out.contains("Loss scale"), "{out}");
    assert!(place.json("runs/3-mine/report.json")["loss_scale"].is_null());
    assert!(place.fails(2, &with(&reference, &["--precision", "f8"])).contains("expected f32, bf16 or f16"));
}
