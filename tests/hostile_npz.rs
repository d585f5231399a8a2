//! Files made to hurt: every one gives an error or a valid result, never a panic, in bounded time, and with memory in
//! proportion to the file. A counting allocator, hence a test binary of its own, measures the memory.
//!
//! The bound: [`FACTOR`] bytes for each byte of the file and of what its members unpack to, and [`FIXED`] bytes for
//! buffers. The factor is what a pickle of one-byte instructions costs (see `floods_of_small_instructions`).
// clippy.toml allows it in tests, but clippy does not count their helpers as such.
#![allow(clippy::unwrap_used)]

#[path = "counting/mod.rs"]
mod counting;

use counting::peak_of;
use recurve::archive::{LARGE_MEMBER, MAX_MEMBERS};
use recurve::data::imdb;
use recurve::data::npz::NpzArchive;
use recurve::rng::{Purpose, Rng};
use std::io::{Cursor, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

const FACTOR: usize = 64;
const FIXED: usize = 1 << 20;
/// Wall clock for one file. Most take microseconds; the rest is for machines that are busy with other things.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything that a file can be asked for: Keras' parts, then every array by its name.
fn consume(file: &[u8]) -> Result<(), String> {
    let mut archive =
        NpzArchive::from_reader(Path::new("hostile.npz"), Cursor::new(file)).map_err(|e| e.to_string())?;
    let loaded = imdb::read(&mut archive, 10_000).map(drop).map_err(|e| e.to_string());
    let names: Vec<String> = archive.names().map(str::to_string).collect();
    let mut result = if archive.contains("x_train") { loaded } else { Ok(()) };
    for name in names {
        result = result.and(archive.read(&name).map(drop).map_err(|e| e.to_string()));
    }
    result
}

struct Seen {
    result: Result<(), String>,
    peak: usize,
}

/// Reads a file whose members unpack to `unpacked` bytes, under all the bounds.
fn attack(what: &str, file: &[u8], unpacked: usize) -> Seen {
    let start = Instant::now();
    let (result, peak) = peak_of(|| std::panic::catch_unwind(|| consume(file)));
    let took = start.elapsed();
    let Ok(result) = result else { panic!("{what}: a panic") };
    assert!(took < PATIENCE, "{what}: {took:?}");
    let bound = FACTOR * (file.len() + unpacked) + FIXED;
    assert!(
        peak <= bound,
        "{what}: {peak} bytes for a file of {} and {unpacked} unpacked, {result:?}",
        file.len()
    );
    if let Err(message) = &result {
        assert!(message.starts_with("hostile.npz") && message.len() < 2000, "{what}: {message}");
    }
    Seen { result, peak }
}

/// The same for a file that must be refused with all of `words`.
fn refused(what: &str, file: &[u8], unpacked: usize, words: &[&str]) -> Seen {
    let seen = attack(what, file, unpacked);
    let message = seen.result.as_ref().expect_err(what);
    for word in words {
        assert!(message.contains(word), "{what}: {word:?} is not in: {message}");
    }
    seen
}

type Members = Vec<(String, Vec<u8>)>;

fn zipped(members: &Members, method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(name.as_str(), SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn stored(name: &str, bytes: Vec<u8>) -> Vec<u8> {
    zipped(&vec![(name.to_string(), bytes)], CompressionMethod::Stored)
}

/// A `.npy` file with any header text.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn numbers(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    npy(&format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"), data)
}

/// An archive whose x is an object array of `n` rows, with `rows` the instructions that push the list of them.
fn object_array(n: u32, rows: &[u8]) -> Vec<u8> {
    let mut pickle =
        b"\x80\x04cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R(K\x01J".to_vec();
    pickle.extend_from_slice(&n.to_le_bytes());
    pickle.extend_from_slice(b"\x85cnumpy\ndtype\n\x8c\x02O8K\0K\x01\x87R(K\x03\x8c\x01|NNNtb\x89");
    pickle.extend_from_slice(rows);
    pickle.extend_from_slice(b"tb.");
    stored("x_train.npy", numbers("'|O'", &format!("({n},)"), &pickle))
}

fn fixtures() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/npz");
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "npz"))
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() >= 60);
    files
}

fn members(file: &[u8]) -> Members {
    let mut zip = ZipArchive::new(Cursor::new(file)).unwrap();
    (0..zip.len())
        .map(|k| {
            let mut member = zip.by_index(k).unwrap();
            let mut bytes = Vec::new();
            member.read_to_end(&mut bytes).unwrap();
            (member.name().unwrap().into_owned(), bytes)
        })
        .collect()
}

/// What stands in pickles and in headers, for insertion where it does not belong.
const TOKENS: [&[u8]; 44] = [
    b"(",
    b"]",
    b")",
    b"e",
    b"a",
    b"t",
    b"l",
    b"R",
    b"b",
    b".",
    b"N",
    b"0",
    b"\x85",
    b"\x86",
    b"\x87",
    b"\x94",
    b"h\0",
    b"h\x02",
    b"h\x05",
    b"q\0",
    b"q\x09",
    b"K\x01",
    b"M\x01\x02",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\x7f",
    b"\x8a\xff",
    b"X\xff\xff\xff\xff",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x96\0\0\0\0\x01\0\0\0",
    b"r\xff\xff\xff\xff",
    b"cos\nsystem\n",
    b"\x93",
    b"\x80\x02",
    b"\x80\x05",
    b"[",
    b"(((",
    b"'",
    b"18446744073709551616",
    b"4294967296, ",
    b"0, ",
    b"-1",
    b"True",
];

/// One to three changes: flipped bits, cuts, moved or repeated stretches, inflated numbers, foreign tokens.
fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..1 + rng.below(3) {
        let n = bytes.len();
        if n == 0 {
            return;
        }
        // Headers stand at the start and the ZIP directory at the end: half of the changes go there.
        let at = match rng.below(4) {
            0 => rng.below(n.min(200) as u64) as usize,
            1 => n - 1 - rng.below(n.min(200) as u64) as usize,
            _ => rng.below(n as u64) as usize,
        };
        let length = (1 + rng.below(64) as usize).min(n - at);
        match rng.below(12) {
            0..=5 => bytes[at] ^= 1 << rng.below(8),
            6 => bytes[at] = rng.bits() as u8,
            7 => bytes.truncate(at),
            8 => {
                let stretch = bytes[at..at + length].to_vec();
                let to = rng.below(n as u64) as usize;
                bytes.splice(to..to, stretch);
            }
            9 => {
                bytes.drain(at..at + length);
            }
            10 => {
                let width = (1usize << rng.below(4)).min(n - at);
                let value = [u64::MAX, i64::MAX as u64, 1 << 31, 0x7fff_ffff, 0xffff, n as u64 + 1, 0]
                    [rng.below(7) as usize];
                bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
            _ => {
                let token = TOKENS[rng.below(TOKENS.len() as u64) as usize];
                let end = at + if rng.below(2) == 0 { token.len().min(n - at) } else { 0 };
                bytes.splice(at..end, token.iter().copied());
            }
        }
    }
}

#[derive(Default)]
struct Tally {
    files: usize,
    valid: usize,
    peak: usize,
}

impl Tally {
    fn add(&mut self, seen: &Seen) {
        self.files += 1;
        self.valid += usize::from(seen.result.is_ok());
        self.peak = self.peak.max(seen.peak);
    }

    fn report(&self, what: &str, start: Instant) {
        println!(
            "{what}: {} files, {} still valid, peak {} bytes, {:.1} s",
            self.files,
            self.valid,
            self.peak,
            start.elapsed().as_secs_f64()
        );
        // Were all refused, the mutations would be too coarse to reach the depths; were few, too fine.
        assert!(self.valid > 0 && self.valid < self.files);
    }
}

#[test]
fn archives_with_mutations() {
    let (mut tally, start) = (Tally::default(), Instant::now());
    for (k, (name, file)) in fixtures().into_iter().enumerate() {
        let unpacked: usize = members(&file).iter().map(|(_, bytes)| bytes.len()).sum();
        let whole = attack(&name, &file, unpacked);
        assert!(whole.result.is_ok(), "{name}: {:?}", whole.result);
        let mut rng = Rng::new(1, Purpose::User, k as u32);
        for round in 0..120 {
            let mut file = file.clone();
            mutate(&mut rng, &mut file);
            tally.add(&attack(&format!("{name}, round {round}"), &file, unpacked));
        }
    }
    tally.report("archives", start);
}

#[test]
fn members_with_mutations_and_right_checksums() {
    let (mut tally, start) = (Tally::default(), Instant::now());
    for (k, (name, file)) in fixtures().into_iter().enumerate() {
        let members = members(&file);
        let mut rng = Rng::new(2, Purpose::User, k as u32);
        for round in 0..240 {
            let mut members = members.clone();
            let which = rng.below(members.len() as u64) as usize;
            mutate(&mut rng, &mut members[which].1);
            let file = zipped(&members, CompressionMethod::Stored);
            tally.add(&attack(&format!("{name}, round {round}"), &file, 0));
        }
    }
    tally.report("members", start);
}

#[test]
fn headers_that_nest() {
    for open in ["[", "(", "{", "[(", "'a', [("] {
        let nest = open.repeat(60_000 / open.len());
        for header in
            [format!("{{'descr': {nest}"), format!("{{'shape': {nest}"), format!("{{{nest}"), nest.clone()]
        {
            let seen = refused(
                "nested header",
                &stored("x_train.npy", npy(&header, &[])),
                0,
                &["member x_train.npy, byte"],
            );
            assert!(seen.peak < FIXED);
        }
    }
}

#[test]
fn headers_with_giant_lengths() {
    for version in [2, 3] {
        for length in [u32::MAX, 1 << 31, 65_537, 65_530] {
            let mut member = b"\x93NUMPY".to_vec();
            member.extend_from_slice(&[version, 0]);
            member.extend_from_slice(&length.to_le_bytes());
            member.extend_from_slice(&[b' '; 1000]);
            let seen = refused("giant header", &stored("x_train.npy", member), 0, &["byte 8", "header of"]);
            assert!(seen.peak < FIXED);
        }
    }
    for short in 0..12 {
        let member = b"\x93NUMPY\x02\0\0\0\0\0"[..short].to_vec();
        refused("short member", &stored("x_train.npy", member), 0, &["member x_train.npy"]);
    }
}

#[test]
fn shapes_that_overflow_or_promise_too_much() {
    for (shape, words) in [
        ("(9223372036854775807, 9223372036854775807)", "more than 2^64"),
        ("(4294967296, 4294967296)", "more than 2^64"),
        ("(4294967296, 4294967296, 0)", "more than 2^64"),
        ("(2305843009213693952, 8)", "more than 2^64"),
        ("(2305843009213693953,)", "more than 2^64"),
        ("(1000000000,)", "needs 8000000000 bytes"),
        ("(99999999999999999999999,)", "dimension"),
        (
            "(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)",
            "32 dimensions",
        ),
    ] {
        let seen = refused(shape, &stored("x_train.npy", numbers("'<i8'", shape, &[0; 16])), 0, &[words]);
        assert!(seen.peak < FIXED);
    }
    // A zero among the dimensions makes an array without values, however large the others are.
    let empty = attack("empty", &stored("a.npy", numbers("'<i8'", "(0, 9223372036854775807, 4)", &[])), 0);
    assert_eq!(empty.result, Ok(()));
    let header = "{'descr': '<i2', 'fortran_order': True, 'shape': (0, 9223372036854775807, 4), }";
    assert_eq!(attack("empty", &stored("a.npy", npy(header, &[])), 0).result, Ok(()));
}

#[test]
fn callables_are_refused_by_name_and_not_called() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let command = format!("echo called > {}", witness.display());
    let mut call = Vec::new();
    call.extend_from_slice(b"X");
    call.extend_from_slice(&(command.len() as u32).to_le_bytes());
    call.extend_from_slice(command.as_bytes());
    call.extend_from_slice(b"\x85R");
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("numpy", "load"),
        ("__builtin__", "bytearray"),
    ] {
        let plain = [format!("c{module}\n{name}\n").as_bytes(), &call].concat();
        let stacked = [
            &[0x8c, module.len() as u8],
            module.as_bytes(),
            &[0x8c, name.len() as u8],
            name.as_bytes(),
            b"\x93",
            &call,
        ]
        .concat();
        for rows in [plain, stacked] {
            let what = format!("{module}.{name}");
            refused(
                &what,
                &object_array(1, &rows),
                0,
                &[&what, "never executed", "member x_train.npy, byte"],
            );
            let bare = [b"\x80\x04", &rows[..], b"."].concat();
            refused(&what, &stored("x_train.npy", numbers("'|O'", "(1,)", &bare)), 0, &[&what]);
        }
    }
    for (op, name) in [
        (&b"(ios\nsystem\n"[..], "INST"),
        (b"\x81", "NEWOBJ"),
        (b"Pid\n", "PERSID"),
        (b"\x97", "out of the file"),
        (b"\x82\x01", "EXT"),
    ] {
        refused(name, &object_array(1, op), 0, &[name, "has no place"]);
    }
    assert!(!witness.exists());
}

#[test]
fn pickles_with_giant_lengths() {
    for (what, op) in [
        ("LONG1", &b"\x8a\xff\x01"[..]),
        ("LONG4", b"\x8b\xff\xff\xff\x7f\x01"),
        ("LONG4, negative", b"\x8b\xff\xff\xff\xff\x01"),
        ("BINUNICODE", b"X\xff\xff\xff\xffabc"),
        ("BINSTRING", b"T\xff\xff\xff\x7fabc"),
        ("BINBYTES", b"B\xff\xff\xff\xffabc"),
        ("BINUNICODE8", b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc"),
        ("BINBYTES8", b"\x8e\0\0\0\0\0\0\0\x80abc"),
        ("BYTEARRAY8", b"\x96\0\0\0\0\x01\0\0\0abc"),
        ("FRAME", b"\x95\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("FRAME", b"\x95\0\0\0\0\x01\0\0\0"),
        ("GLOBAL without an end", b"caaaaaaaaaa"),
        ("LONG_BINPUT", b"Nr\xff\xff\xff\xff"),
        ("LONG_BINGET", b"j\xff\xff\xff\xff"),
    ] {
        let seen = refused(what, &object_array(1, op), 0, &["member x_train.npy, byte"]);
        assert!(seen.peak < FIXED);
    }
    // A shape that only the pickle's own header promises.
    refused("promised rows", &object_array(2_000_000_000, b"]"), 0, &["2000000000", "0 elements"]);
}

#[test]
fn one_list_named_many_times() {
    // A row of 1,000 integers, named in 2 bytes a hundred thousand times: 800 MB of output if it were followed.
    let mut rows = b"](](".to_vec();
    rows.extend_from_slice(&b"K\x07".repeat(1000));
    rows.extend_from_slice(b"eq\0");
    rows.extend_from_slice(&b"h\0".repeat(100_000));
    rows.extend_from_slice(b"e");
    let seen = refused("laughs", &object_array(100_001, &rows), 0, &["same list", "np.save"]);
    println!("one list named 100,000 times: peak {} bytes for a file of {}", seen.peak, rows.len());
    // Level upon level, each holding the one below ten times: 10^40 leaves.
    let mut rows = b"](](K\x01eq\0".to_vec();
    for level in 0..40u8 {
        rows.extend_from_slice(b"](");
        rows.extend_from_slice(&[b'h', level].repeat(10));
        rows.extend_from_slice(&[b'e', b'q', level + 1]);
    }
    rows.push(b'e');
    refused("levels", &object_array(41, &rows), 0, &["row 1, item 0 is a list"]);
    // A list that holds itself.
    refused("self", &object_array(1, b"]q\0h\0a"), 0, &["row 0, item 0 is a list"]);
}

#[test]
fn deep_nesting() {
    let n = 1_000_000;
    for (what, down, up) in [
        ("lists", &b"]"[..], &b"a"[..]),
        ("marked lists", b"](", b"e"),
        ("tuples", b"(", b"t"),
        ("marked tuples", b"((", b"tt"),
        ("marks", b"(", b""),
    ] {
        let rows = [b"]", &down.repeat(n)[..], b"N", &up.repeat(n), b"a"].concat();
        let seen = attack(what, &object_array(1, &rows), 0);
        println!("{what} {n} deep: {:.1} bytes a byte", seen.peak as f64 / rows.len() as f64);
        assert!(seen.result.is_err());
    }
    let rows = [&b"](N"[..], &b"\x85".repeat(n), b"e"].concat();
    refused("tuples of one", &object_array(1, &rows), 0, &["row 0, item 0 is a tuple"]);
}

#[test]
fn floods_of_small_instructions() {
    // The instructions that cost most for their length, alone and in the shortest mixtures.
    let n = 300_000;
    let mut worst = 0.0f64;
    for unit in [
        &b"]"[..],
        b"]\x94",
        b")",
        b"N",
        b"\x88",
        b"K\x01",
        b"]K\x01a",
        b"](K\x01e",
        b"]\x94K\x01a",
        b"N\x85",
        b"N\x85\x94",
        b"NN\x86",
        b"(t",
        b"(Nt",
        b"(l",
        b"(Nl",
        b"(]",
        b"\x8a\0",
        b"\x8a\x05\0\0\0\0\x7f",
        b"U\0",
        b"U\0\x94",
        b"Nr\0\0\0\0",
        b"\x8c\0",
    ] {
        let list = [b"](", &unit.repeat(n)[..], b"e"].concat();
        for (rows, count) in [(list, n as u32), (unit.repeat(n), 1)] {
            let file = object_array(count, &rows);
            let seen = attack(&format!("flood of {unit:?}"), &file, 0);
            worst = worst.max((seen.peak.saturating_sub(FIXED)) as f64 / file.len() as f64);
        }
    }
    // Arrays, in the fewest bytes that make one.
    let mut rows =
        b"cnumpy.core.multiarray\n_reconstruct\nq\0cnumpy\nndarray\nK\0\x85C\x01b\x87q\x0100](".to_vec();
    rows.extend_from_slice(&b"h\0h\x01R".repeat(n));
    rows.extend_from_slice(b"e");
    attack("flood of arrays", &object_array(n as u32, &rows), 0);
    println!("worst flood: {worst:.1} bytes a byte, beyond {FIXED}");
    assert!(worst < FACTOR as f64);
}

/// Where the central directory's entry of the first member starts.
fn first_entry(file: &[u8]) -> usize {
    file.windows(4).position(|four| four == b"PK\x01\x02").unwrap()
}

#[test]
fn archives_that_lie_about_their_members() {
    let y = numbers("'<i8'", "(1000,)", &[7; 8000]);
    let members = vec![("y.npy".to_string(), y.clone())];
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let good = zipped(&members, method);
        assert_eq!(attack("good", &good, y.len()).result, Ok(()));
        let entry = first_entry(&good);
        let patched = |at: usize, bytes: &[u8]| {
            let mut file = good.clone();
            file[entry + at..entry + at + bytes.len()].copy_from_slice(bytes);
            file
        };
        let size = |size: usize| patched(24, &(size as u32).to_le_bytes());
        refused("more than declared", &size(y.len() - 8), y.len(), &["member y.npy"]);
        refused("less than declared", &size(y.len() + 8), y.len(), &["member y.npy"]);
        refused("far less than declared", &size(0xffff_fffe), y.len(), &["member y.npy", "at most"]);
        refused(
            "packed size",
            &patched(20, &0x7fff_ffffu32.to_le_bytes()),
            y.len(),
            &["member y.npy", "cut off"],
        );
        refused("nothing packed", &patched(20, &0u32.to_le_bytes()), y.len(), &["member y.npy", "at most"]);
        refused("checksum", &patched(16, &[1, 2, 3, 4]), y.len(), &["member y.npy", "damaged"]);
        refused("encrypted", &patched(8, &[1, 0]), y.len(), &["member y.npy", "encrypted"]);
        refused("bzip2", &patched(10, &[12, 0]), y.len(), &["member y.npy", "expected stored or deflated"]);
        refused(
            "unknown method",
            &patched(10, &[77, 0]),
            y.len(),
            &["member y.npy", "expected stored or deflated"],
        );
        // 0xffffffff asks for a ZIP64 field, which is not there.
        let _ = attack("zip64", &size(0xffff_ffff), y.len());
        let _ = attack("header offset", &patched(42, &[0xff; 4]), y.len());
    }
    // Two members of one name: the second is renamed in local header and directory alike.
    let two = vec![("a.npy".to_string(), y.clone()), ("b.npy".to_string(), y.clone())];
    let mut file = zipped(&two, CompressionMethod::Stored);
    let names: Vec<usize> =
        file.windows(5).enumerate().filter(|(_, five)| *five == b"b.npy").map(|(at, _)| at).collect();
    names.into_iter().for_each(|at| file[at] = b'a');
    refused("two of one name", &file, 0, &["same name"]);
}

#[test]
fn end_records_that_promise_members() {
    let good = stored("y.npy", numbers("'<i8'", "(4,)", &[7; 32]));
    let end = good.len() - 22;
    let with = |members: u16| {
        let mut file = vec![0; 100_000];
        file.extend_from_slice(&good);
        for at in [8, 10] {
            file[100_000 + end + at..][..2].copy_from_slice(&members.to_le_bytes());
        }
        file
    };
    assert_eq!(attack("one member", &with(1), 0).result, Ok(()));
    for members in [u16::MAX, u16::MAX - 1, MAX_MEMBERS as u16 + 1] {
        let seen = refused("members", &with(members), 0, &[&format!("{members} members"), "byte"]);
        assert!(seen.peak < FIXED);
    }
    // As many as are allowed, with only one there.
    let seen = refused("members", &with(MAX_MEMBERS as u16), 0, &["hostile.npz"]);
    assert!(seen.peak < FIXED);
    // A ZIP64 locator before the end record.
    let mut file = good[..end].to_vec();
    file.extend_from_slice(b"PK\x06\x07");
    file.extend_from_slice(&[0; 16]);
    file.extend_from_slice(&good[end..]);
    refused("zip64", &file, 0, &["ZIP64"]);
    // Many end records, one after the other.
    let mut file = good.clone();
    file.extend_from_slice(&good[end..].repeat(2500));
    let _ = attack("many ends", &file, 0);
}

#[test]
fn zip_bombs() {
    // Zeros, packed a thousand times: refused by what the directory says, before anything is unpacked.
    let zeros = vec![0; LARGE_MEMBER as usize + 1];
    let bomb = zipped(&vec![("x_train.npy".to_string(), zeros)], CompressionMethod::Deflated);
    let seen = refused("bomb", &bomb, 0, &["member x_train.npy", "exhaust memory"]);
    assert!(seen.peak < FIXED, "{}", seen.peak);
    // One that says it is small: unpacking stops where the directory says that the member ends.
    let mut liar = bomb.clone();
    let entry = first_entry(&liar);
    liar[entry + 24..entry + 28].copy_from_slice(&5000u32.to_le_bytes());
    let seen = refused("lying bomb", &liar, 0, &["member x_train.npy"]);
    assert!(seen.peak < FIXED, "{}", seen.peak);
    // A smaller one is unpacked only as far as its header asks for it: here, not at all.
    let zeros = numbers("'<i8'", "(8,)", &vec![0; 16 << 20]);
    let bomb = zipped(&vec![("x_train.npy".to_string(), zeros)], CompressionMethod::Deflated);
    let seen = refused("small bomb", &bomb, 0, &["needs 64 bytes"]);
    assert!(seen.peak < FIXED, "{}", seen.peak);
}
