//! Archives as NumPy 1.26 and 2.4 wrote them (tests/fixtures/npz/make.py), read to the values that the script put in;
//! archives that do not hold what they should, refused with the place; archives of ours, read back.
// clippy.toml allows it in tests, but clippy does not count their helpers as such.
#![allow(clippy::unwrap_used)]

use recurve::data::Sequences;
use recurve::data::batch::{Side, pad_sequences};
use recurve::data::imdb::{self, Inputs};
use recurve::data::npz::{Array, NpzArchive, Output, Values, write_npz, write_npz_to};
use recurve::data::pickle;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/npz").join(format!("{name}.npz"))
}

fn read(file: &str, array: &str) -> Array {
    NpzArchive::open(&fixture(file)).and_then(|mut archive| archive.read(array)).unwrap()
}

/// The script's `ranks`.
fn ranks(part: i64, lengths: &[i64]) -> Vec<Vec<i64>> {
    let mut rows: Vec<Vec<i64>> = (0..)
        .zip(lengths)
        .map(|(r, &n)| (0..n).map(|k| 1 + (part * 31 + r * 7919 + k * 104_729) % 88_584).collect())
        .collect();
    rows[1][0] = 70_000;
    rows[2][1] = (1 << 31) + 5;
    rows
}

fn train() -> Vec<Vec<i64>> {
    ranks(0, &[3, 1, 5, 1001, 0, 12])
}

fn test() -> Vec<Vec<i64>> {
    ranks(1, &[2, 7, 2])
}

const Y_TRAIN: [u32; 6] = [0, 1, 1, 0, 2, 1];
const Y_TEST: [u32; 3] = [1, 0, 1];

fn rows_of(array: Array) -> Vec<Vec<i64>> {
    match array.values {
        Values::Rows(rows) => {
            assert_eq!(array.shape, [rows.len()]);
            rows.iter().map(<[i64]>::to_vec).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Keras' `load_data` in its own words: shift, then drop.
fn keras(rows: &[Vec<i64>], num_words: i64) -> Sequences {
    rows.iter()
        .map(|row| {
            let shifted = std::iter::once(1).chain(row.iter().map(|&rank| rank + 3));
            shifted.map(|id| if id < num_words { id as u32 } else { 2 }).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn every_protocol_numpy_version_and_kind_of_row_reads_the_same() {
    let mut read_so_far = 0;
    for numpy in ["np1", "np2"] {
        let protocols =
            (2..=5).flat_map(|p| ["lists", "tuples", "arrays"].map(|kind| format!("{kind}-p{p}")));
        for kind in protocols.chain(["savez".to_string(), "savez_compressed".to_string()]) {
            let file = format!("{numpy}-{kind}");
            assert_eq!(rows_of(read(&file, "x_train")), train(), "{file}");
            assert_eq!(rows_of(read(&file, "x_test")), test(), "{file}");
            assert_eq!(read(&file, "y_train").values, Values::Int(Y_TRAIN.map(i64::from).to_vec()), "{file}");
            let archive = imdb::load(&fixture(&file), 10_000).unwrap();
            assert_eq!(archive.train.x, Inputs::Ragged(keras(&train(), 10_000)), "{file}");
            assert_eq!(archive.train.y, Y_TRAIN, "{file}");
            let part = archive.test.unwrap();
            assert_eq!(
                (part.x, &part.y[..]),
                (Inputs::Ragged(keras(&test(), 10_000)), &Y_TEST[..]),
                "{file}"
            );
            read_so_far += 1;
        }
        // Rows of NumPy scalars are cut to 8 in the script.
        for protocol in 2..=5 {
            let short: Vec<Vec<i64>> =
                train().into_iter().map(|row| row.into_iter().take(8).collect()).collect();
            assert_eq!(rows_of(read(&format!("{numpy}-scalars-p{protocol}"), "x_train")), short);
        }
    }
    assert_eq!(read_so_far, 28);
}

#[test]
fn the_pickle_that_python_2_wrote_is_read() {
    // Keras' own imdb.npz is one: memo slots from 1, strings as SHORT_BINSTRING, and no slot for what is used once.
    let mut pickle = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\0\x85U\x01b\x87Rq\x03\
        (K\x01K\x03\x85cnumpy\ndtype\nq\x04U\x02O8K\0K\x01\x87Rq\x05(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff\
        K?tb\x89]q\x06("
        .to_vec();
    pickle.extend_from_slice(b"]q\x07(K\x05M\x01\x02e]q\x08K\x07a]q\x09");
    pickle.extend_from_slice(b"etb.");
    let rows = pickle::read(&pickle, &[3]).unwrap();
    assert_eq!(rows.iter().collect::<Vec<_>>(), [&[5, 513][..], &[7], &[]]);
}

#[test]
fn other_rows_that_numpy_stores() {
    let matrix = [vec![1, 2, 3], vec![4, 5, 70_000]];
    assert_eq!(rows_of(read("rows-matrix", "x_train")), matrix);
    assert_eq!(rows_of(read("rows-matrix-fortran", "x_train")), matrix);
    assert_eq!(rows_of(read("rows-nested", "x_train")), [vec![1, 2], vec![3]]);
    assert_eq!(rows_of(read("rows-small", "x_train")), [vec![1, 250], vec![65_535, 3]]);
    let same = vec![9, 8, 7];
    assert_eq!(rows_of(read("rows-same", "x_train")), [same.clone(), same.clone(), vec![6], same]);
}

#[test]
fn labels_of_every_width_and_byte_order() {
    for kind in ["i1", "u1", "le-i2", "be-i2", "le-u2", "be-i4", "le-u4", "be-i8", "le-u8", "column"] {
        let archive = imdb::load(&fixture(&format!("labels-{kind}")), 10_000).unwrap();
        assert_eq!(archive.train.y, Y_TRAIN, "{kind}");
        assert_eq!(archive.test, None);
    }
    assert_eq!(imdb::load(&fixture("labels-bool"), 10_000).unwrap().train.y, Y_TRAIN.map(|y| y.min(1)));
}

#[test]
fn prepared_ids_are_taken_as_they_are() {
    let expected: Vec<u32> = (0..6).flat_map(|r| (0..4).map(move |k| (r * 7 + k * 3) % 50)).collect();
    for file in ["ids-i8", "ids-be-i4", "ids-u1", "ids-fortran", "npy-v2", "npy-v3"] {
        // A vocabulary of 5 would turn most ids into OOV if they were prepared again.
        let x = imdb::load(&fixture(file), 5).unwrap().train.x;
        assert_eq!(x, Inputs::Padded { ids: expected.clone(), t: 4 }, "{file}");
        assert_eq!(x.rows(), 6);
    }
}

#[test]
fn weights_in_keras_layout() {
    let shapes: [(&str, &[usize]); 6] = [
        ("embedding/embeddings", &[5, 2]),
        ("lstm/kernel", &[2, 12]),
        ("lstm/recurrent_kernel", &[3, 12]),
        ("lstm/bias", &[12]),
        ("dense/kernel", &[3, 2]),
        ("dense/bias", &[2]),
    ];
    for file in ["weights-f4", "weights-f8", "weights-fortran"] {
        let mut archive = NpzArchive::open(&fixture(file)).unwrap();
        assert!(archive.names().eq(shapes.map(|(name, _)| name)));
        for (name, shape) in shapes {
            let array = archive.read(name).unwrap();
            let values = (0..shape.iter().product()).map(|k: usize| k as f64 * 0.25 - 2.0).collect();
            assert_eq!((&array.shape[..], array.values), (shape, Values::Float(values)), "{file} {name}");
        }
    }
    assert_eq!(read("scalar", "epoch"), Array { shape: vec![], values: Values::Int(vec![7]) });
    assert_eq!(read("scalar", "empty"), Array { shape: vec![0, 3], values: Values::Int(vec![]) });
}

#[test]
fn a_small_vocabulary_turns_the_start_into_oov_too() {
    // Keras filters after it has prepended, so this is what it does.
    let one = imdb::load(&fixture("np2-savez"), 1).unwrap();
    assert_eq!(one.train.x, Inputs::Ragged(keras(&train(), 1)));
    let two = imdb::load(&fixture("np2-savez"), 2).unwrap();
    assert_eq!(two.train.x, Inputs::Ragged(keras(&train(), 2)));
    // The first rank is 1, its id 4: the last word that a vocabulary of 5 keeps.
    let Inputs::Ragged(x) = imdb::load(&fixture("np2-savez"), 5).unwrap().train.x else { panic!() };
    assert_eq!(x.row(0), [1, 4, 2, 2]);
}

/// A `.npy` file of version 1.0.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn i8s(shape: &str, values: &[i64]) -> Vec<u8> {
    npy("<i8", shape, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
}

/// An object array of lists, as protocol 2 writes it.
fn lists(rows: &[&[i64]]) -> Vec<u8> {
    let n = rows.len() as u8;
    let mut pickle =
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01K".to_vec();
    pickle.push(n);
    pickle.extend_from_slice(b"\x85cnumpy\ndtype\nU\x02O8K\0K\x01\x87R(K\x03U\x01|NNNtb\x89](");
    for row in rows {
        pickle.extend_from_slice(b"](");
        for value in *row {
            pickle.extend_from_slice(b"\x8a\x08");
            pickle.extend_from_slice(&value.to_le_bytes());
        }
        pickle.push(b'e');
    }
    pickle.extend_from_slice(b"etb.");
    npy("|O", &format!("({n},)"), &pickle)
}

fn zipped(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(CompressionMethod::Stored))
            .unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn archive_of(members: &[(&str, Vec<u8>)]) -> NpzArchive<Cursor<Vec<u8>>> {
    NpzArchive::from_reader(Path::new("some.npz"), Cursor::new(zipped(members))).unwrap()
}

/// Loads an archive of these members and expects an error that holds all the given words.
fn refused(members: &[(&str, Vec<u8>)], words: &[&str]) {
    let error = imdb::read(&mut archive_of(members), 10_000).unwrap_err().to_string();
    assert!(error.starts_with("some.npz"), "{error}");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn archives_that_do_not_hold_what_they_should_name_file_member_and_row() {
    let x = || lists(&[&[1, 2], &[3]]);
    let y = || i8s("(2,)", &[0, 1]);
    refused(&[("x_train.npy", x())], &["no array \"y_train\"", "x_train"]);
    refused(&[("y_train.npy", y())], &["no array \"x_train\""]);
    refused(&[("readme.txt", y())], &["no arrays at all"]);
    let three = i8s("(3,)", &[0, 1, 0]);
    refused(&[("x_train.npy", x()), ("y_train.npy", three)], &["member y_train.npy", "3 labels", "2 rows"]);
    let negative = i8s("(2,)", &[0, -1]);
    refused(&[("x_train.npy", x()), ("y_train.npy", negative)], &["member y_train.npy", "row 1", "-1"]);
    let huge = i8s("(2,)", &[1 << 40, 0]);
    refused(&[("x_train.npy", x()), ("y_train.npy", huge)], &["member y_train.npy", "row 0"]);
    let floats = npy("<f8", "(2,)", &[0; 16]);
    refused(&[("x_train.npy", x()), ("y_train.npy", floats)], &["member y_train.npy", "floats", "astype"]);
    let table = i8s("(2, 2)", &[0; 4]);
    refused(
        &[("x_train.npy", x()), ("y_train.npy", table)],
        &["member y_train.npy", "[2, 2]", "one for each row"],
    );
    refused(&[("x_train.npy", x()), ("y_train.npy", x())], &["member y_train.npy", "lists"]);
    let rank = lists(&[&[1], &[2, -5]]);
    refused(&[("x_train.npy", rank), ("y_train.npy", y())], &["member x_train.npy", "row 1", "-5", "ranks"]);
    let id = i8s("(2, 2)", &[1, 2, 3, -4]);
    refused(&[("x_train.npy", id), ("y_train.npy", y())], &["member x_train.npy", "row 1, column 1", "-4"]);
    let flat = i8s("(2,)", &[1, 2]);
    refused(&[("x_train.npy", flat), ("y_train.npy", y())], &["member x_train.npy", "[2]", "lists of ranks"]);
    let narrow = i8s("(2, 0)", &[]);
    refused(&[("x_train.npy", narrow), ("y_train.npy", y())], &["member x_train.npy", "[2, 0]"]);
    let floats = npy("<f4", "(2, 2)", &[0; 16]);
    refused(&[("x_train.npy", floats), ("y_train.npy", y())], &["member x_train.npy", "floats"]);
    let (none, no_label) = (lists(&[]), i8s("(0,)", &[]));
    refused(&[("x_train.npy", none), ("y_train.npy", no_label)], &["member x_train.npy", "no rows"]);
    let parts = [("x_train.npy", x()), ("y_train.npy", y()), ("x_test.npy", x())];
    refused(&parts, &["x_test", "no y_test"]);
    let parts = [("x_train.npy", x()), ("y_train.npy", y()), ("y_test.npy", y())];
    refused(&parts, &["y_test", "no x_test"]);
    let parts =
        [("x_train.npy", x()), ("y_train.npy", y()), ("x_test.npy", lists(&[&[1]])), ("y_test.npy", y())];
    refused(&parts, &["member y_test.npy", "2 labels", "1 rows of x_test"]);
    // The same members without a fault load.
    let parts = [("x_train.npy", x()), ("y_train.npy", y()), ("x_test.npy", x()), ("y_test.npy", y())];
    let archive = imdb::read(&mut archive_of(&parts), 10_000).unwrap();
    assert_eq!(archive.test.as_ref(), Some(&archive.train));
    assert_eq!(archive.train.x, Inputs::Ragged(keras(&[vec![1, 2], vec![3]], 10_000)));
}

#[test]
fn a_rank_beyond_32_bits_is_out_of_vocabulary() {
    let x = lists(&[&[i64::MAX, 5, i64::MAX - 3]]);
    let parts = [("x_train.npy", x), ("y_train.npy", i8s("(1,)", &[0]))];
    let archive = imdb::read(&mut archive_of(&parts), 10_000).unwrap();
    assert_eq!(archive.train.x, Inputs::Ragged([vec![1, 2, 8, 2]].into_iter().collect()));
    // With no limit on words it cannot be an id.
    let parts = [("x_train.npy", lists(&[&[1 << 40]])), ("y_train.npy", i8s("(1,)", &[0]))];
    let error = imdb::read(&mut archive_of(&parts), usize::MAX).unwrap_err().to_string();
    assert!(error.contains("row 0") && error.contains("1099511627776"), "{error}");
}

#[test]
fn lists_cut_while_they_are_read_are_padded_to_the_same_rows() {
    for file in [fixture("np2-savez")] {
        let whole = imdb::load(&file, 10_000).unwrap();
        for (maxlen, truncating) in (1..8).flat_map(|maxlen| [(maxlen, Side::Pre), (maxlen, Side::Post)]) {
            let cut = imdb::load_cut(&file, 10_000, Some(maxlen), truncating).unwrap();
            for (whole, cut) in
                [(&whole.train, &cut.train), (whole.test.as_ref().unwrap(), cut.test.as_ref().unwrap())]
            {
                assert_eq!(whole.y, cut.y);
                let (Inputs::Ragged(whole), Inputs::Ragged(cut)) = (&whole.x, &cut.x) else { panic!() };
                assert!(cut.iter().all(|ids| ids.len() <= maxlen));
                let padded = |x| pad_sequences(x, maxlen, Side::Pre, truncating);
                assert_eq!(padded(whole), padded(cut), "{maxlen} {truncating:?}");
            }
        }
    }
}

#[test]
fn missing_files_and_foreign_files_are_named() {
    let missing = imdb::load(Path::new("no/such.npz"), 10).unwrap_err().to_string();
    assert!(missing.contains("cannot open no/such.npz"), "{missing}");
    for bytes in [&b""[..], b"x_train", &[0; 5000]] {
        let error = NpzArchive::from_reader(Path::new("a.npz"), Cursor::new(bytes)).map(drop).unwrap_err();
        assert!(error.to_string().contains("not a .npz archive"), "{error}");
    }
}

fn written(compress: bool) -> Vec<u8> {
    let kernel: Vec<f32> = (0..600).map(|k| k as f32 / 7.0 - 3.0).collect();
    let arrays = [
        Output { name: "dense/kernel", shape: &[20, 30], values: &kernel },
        Output { name: "dense/bias", shape: &[3], values: &[f32::MIN_POSITIVE, -0.0, f32::NAN] },
        Output { name: "step", shape: &[], values: &[1.5] },
        Output { name: "empty", shape: &[0, 4], values: &[] },
    ];
    write_npz_to(Path::new("m.npz"), Cursor::new(Vec::new()), &arrays, compress).unwrap().into_inner()
}

#[test]
fn what_is_written_reads_back_and_equal_arrays_give_equal_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for compress in [false, true] {
        let bytes = written(compress);
        assert_eq!(bytes, written(compress));
        let mut archive = NpzArchive::from_reader(Path::new("m.npz"), Cursor::new(bytes)).unwrap();
        assert!(archive.names().eq(["dense/kernel", "dense/bias", "step", "empty"]));
        let kernel = archive.read("dense/kernel").unwrap();
        assert_eq!(kernel.shape, [20, 30]);
        let Values::Float(values) = kernel.values else { panic!() };
        assert!(values.iter().enumerate().all(|(k, &v)| v == f64::from(k as f32 / 7.0 - 3.0)));
        let Values::Float(bias) = archive.read("dense/bias").unwrap().values else { panic!() };
        assert!(bias[0] == f64::from(f32::MIN_POSITIVE) && bias[1].is_sign_negative() && bias[2].is_nan());
        assert_eq!(archive.read("step").unwrap(), Array { shape: vec![], values: Values::Float(vec![1.5]) });
        assert_eq!(archive.read("empty").unwrap().shape, [0, 4]);
    }
    let path = folder.path().join("m.npz");
    let one = [Output { name: "a", shape: &[2], values: &[1.0, 2.0] }];
    write_npz(&path, &one, true).unwrap();
    write_npz(&path, &one, true).unwrap();
    let array = NpzArchive::open(&path).unwrap().read("a").unwrap();
    assert_eq!(array, Array { shape: vec![2], values: Values::Float(vec![1.0, 2.0]) });
    // A failed write leaves what was there, and nothing else.
    let wrong = [Output { name: "a", shape: &[3], values: &[1.0, 2.0] }];
    let error = write_npz(&path, &wrong, true).unwrap_err().to_string();
    assert!(error.contains("shape [3] of a") && error.contains("2 values"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(NpzArchive::open(&path).unwrap().read("a").unwrap().shape, [2]);
}

/// Past the test harness, which keeps what a passing test prints: a test that did not run must not look passed.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// What tests/fixtures/npz/make.py does for reading, this does for writing: `np.load` reads our files. Runs where
/// RECURVE_PYTHON names a Python with NumPy.
#[test]
fn numpy_reads_what_is_written() {
    let Some(python) = std::env::var_os("RECURVE_PYTHON") else {
        say("NOT RUN: numpy_reads_what_is_written needs RECURVE_PYTHON, a Python with NumPy");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for compress in [false, true] {
        let path = folder.path().join("m.npz");
        std::fs::write(&path, written(compress)).unwrap();
        let program = "import numpy as np, sys\n\
            z = np.load(sys.argv[1])\n\
            assert z.files == ['dense/kernel', 'dense/bias', 'step', 'empty'], z.files\n\
            k = z['dense/kernel']\n\
            assert k.dtype == '<f4' and k.shape == (20, 30) and k.flags.c_contiguous\n\
            assert (k.ravel() == np.arange(600, dtype='<f4') / np.float32(7) - 3).all()\n\
            assert np.isnan(z['dense/bias'][2]) and z['step'].shape == () and z['empty'].shape == (0, 4)\n";
        let ran = std::process::Command::new(&python).args(["-c", program]).arg(&path).status().unwrap();
        assert!(ran.success(), "compress {compress}");
        println!("done: np.load read it, compress {compress}");
    }
}

/// The real set, where RECURVE_IMDB names a folder that holds imdb.npz. The numbers were computed with NumPy:
///
/// ```python
/// z = np.load("imdb.npz", allow_pickle=True); x, y = z["x_train"], z["y_train"]
/// ids = [[w if w < 10000 else 2 for w in [1] + [w + 3 for w in row]] for row in x]
/// flat = np.array([w for row in ids for w in row], dtype="<u4")
/// lengths = np.array([len(row) for row in ids], dtype="<u4")
/// len(flat), flat.astype("u8").sum(), (flat == 2).sum(), np.median(lengths), lengths.max(), y.sum()
/// [hashlib.sha256(a.tobytes()).hexdigest() for a in (flat, lengths, y.astype("<u4"))]
/// ```
#[test]
fn the_real_set_reads_as_numpy_reads_it() {
    let Some(folder) = std::env::var_os("RECURVE_IMDB") else {
        say("NOT RUN: the_real_set_reads_as_numpy_reads_it needs RECURVE_IMDB, a folder that holds imdb.npz");
        return;
    };
    let start = std::time::Instant::now();
    let archive = imdb::load(&Path::new(&folder).join("imdb.npz"), 10_000).unwrap();
    say(&format!("the real IMDB set: read in {:.2} s", start.elapsed().as_secs_f64()));
    let test = archive.test.unwrap();
    for (part, expected) in [(archive.train, &REAL[0]), (test, &REAL[1])] {
        let Inputs::Ragged(x) = part.x else { panic!() };
        let flat: Vec<u32> = x.iter().flatten().copied().collect();
        let mut lengths: Vec<u32> = x.iter().map(|row| row.len() as u32).collect();
        let hashes = [&flat, &lengths, &part.y].map(|values| sha256(values));
        lengths.sort_unstable();
        assert_eq!((x.len(), part.y.len(), part.y.iter().sum()), (25_000, 25_000, 12_500u32));
        assert_eq!(flat.len(), expected.ids);
        assert_eq!(flat.iter().map(|&id| u64::from(id)).sum::<u64>(), expected.sum);
        assert_eq!(flat.iter().filter(|&&id| id == 2).count(), expected.oov);
        assert_eq!((lengths[12_500], lengths[24_999]), expected.median_and_max);
        assert_eq!(hashes, expected.hashes);
    }
}

fn sha256(values: &[u32]) -> String {
    use sha2::{Digest, Sha256};
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Real {
    ids: usize,
    sum: u64,
    oov: usize,
    median_and_max: (u32, u32),
    /// Of ids, lengths and labels.
    hashes: [&'static str; 3],
}

const REAL: [Real; 2] = [
    Real {
        ids: 5_967_841,
        sum: 4_360_438_289,
        oov: 341_611,
        median_and_max: (178, 2494),
        hashes: [
            "775f575664fb3f07f3b0f031fa3c3af59ea0f204dcd06b971e14ff33e3c0b124",
            "8feedc136b21cbf751428d4fb0b95cf02e3304600c89e1f2a0e1349e47362dad",
            "3b063f583079366a61c169bb086d088e464210f8b6ac62279241f38b39603fbd",
        ],
    },
    Real {
        ids: 5_770_105,
        sum: 4_106_542_514,
        oov: 297_058,
        median_and_max: (174, 2315),
        hashes: [
            "54a8cced80c5a155ecdbd0e14148ed499e2b234e860bf6060ace4386742fbf4c",
            "51a48f95a33390fd6b837a843cbb8c6624207705655587684f1b45050ba10656",
            "3b063f583079366a61c169bb086d088e464210f8b6ac62279241f38b39603fbd",
        ],
    },
];
