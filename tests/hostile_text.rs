//! Damaged and oversized text files: an error or a result, never a panic, and never more memory than stated here.
//!
//! A binary of its own, because it counts what the process allocates.

// A test's helpers may panic as its body may: clippy.toml covers the bodies alone.
#![allow(clippy::unwrap_used)]

use recurve::data::table::{Value, annotate, read_labelled};
use recurve::data::text::{Labels, Vocabulary};
use recurve::rng::{Purpose, Rng};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator with the very arguments that came in; the rest is counting. A
// growing block is allocated anew by the trait's own realloc, so the peak counts the old and the new one.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(HELD.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `block` came from `alloc` above with this `layout`, as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The counters are the process's: one measurement at a time.
static MEASURING: Mutex<()> = Mutex::new(());

/// What `work` gives, and the most that it held at once.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = work();
    (result, PEAK.load(Relaxed).saturating_sub(before))
}

const MIB: usize = 1 << 20;

const CSV: &[u8] =
    b"\xef\xbb\xbfid,text,label\r\n1,\"a \"\"b\"\", c\r\nd\",pos\r\n\r\n2,plain,neg\r\n3,\"\",1.0\r\n";
const TSV: &[u8] = b"text\tlabel\tn\n\"Ja\"\t1\t\nfine caf\xc3\xa9\t0\tx\n\nlast\t-1e3\ty";
const JSONL: &[u8] =
    b"{\"text\": \"a\\u00e9\\ud83c\\udfac\", \"label\": 1, \"o\": {\"a\": [1, 2.5e3, null]}}\r\n\
                       {\"label\":true,\"text\":\"\"}\n\n{\"text\": \"c\", \"label\": \"x\"} \n";
const INDEX: &[u8] =
    b"{\"the\": 1, \"film\": 3, \"and\": 2, \"it\\u0085\": 4, \"caf\xc3\xa9\": 5, \"rare\": 88584}";

/// Bytes that mean something to one of the formats.
const PIECES: [&[u8]; 24] = [
    b"\"",
    b"\"\"",
    b",",
    b"\t",
    b"\n",
    b"\r",
    b"\r\n",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"\\",
    b"\\u",
    b"\\ud800",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"99999999999999999999999999",
    b"1e999",
    b"-0",
    b"text",
    b"label",
    b"null",
];

fn below(rng: &mut Rng, n: usize) -> usize {
    rng.below(n as u64) as usize
}

fn mutated(seed: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + below(rng, 3) {
        let at = below(rng, bytes.len() + 1);
        let end = (at + below(rng, 12)).min(bytes.len());
        match below(rng, 7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << below(rng, 8),
            1 if at < bytes.len() => bytes[at] = rng.bits() as u8,
            2 => drop(bytes.drain(at..end)),
            3 => bytes.truncate(at),
            4 => {
                let piece = bytes[at..end].to_vec();
                let to = below(rng, bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            5 => {
                let piece = PIECES[below(rng, PIECES.len())].repeat(1 + below(rng, 3) * below(rng, 200));
                bytes.splice(at..at, piece);
            }
            _ => {
                let piece = PIECES[below(rng, PIECES.len())];
                bytes.splice(at..end, piece.iter().copied());
            }
        }
    }
    bytes
}

/// Files of a few hundred to some thousand bytes never need more than this: buffers, rows and messages together.
const SMALL: usize = MIB;

/// Runs `work` on mutations of `seed`; gives how many were read and how many refused.
fn storm(
    name: &str,
    seed: &[u8],
    rounds: u32,
    stream: u32,
    work: impl Fn(&Path) -> Result<(), recurve::Error>,
) {
    let _alone = MEASURING.lock().unwrap_or_else(|broken| broken.into_inner());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let mut rng = Rng::new(20, Purpose::User, stream);
    let (mut read, mut refused) = (0, 0);
    for round in 0..rounds {
        let bytes = mutated(seed, &mut rng);
        // Removed first: ext4 flushes a file that is cut to nothing and written anew, 4 ms each time.
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, &bytes).unwrap();
        let (result, peak) = peak_of(|| work(&path));
        assert!(
            peak < SMALL,
            "{name}, round {round}: {peak} bytes held for {:?}",
            String::from_utf8_lossy(&bytes)
        );
        match result {
            Ok(()) => read += 1,
            Err(error) => {
                let message = error.to_string();
                assert!(message.contains(name) && message.len() < 4_000, "round {round}: {message}");
                refused += 1;
            }
        }
    }
    // The input and perhaps an output: no unfinished file is left behind.
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert!(left <= 2, "{name}: {left} files");
    // Neither all noise nor all harmless.
    assert!(read > rounds / 50 && refused > rounds / 50, "{name}: {read} read, {refused} refused");
}

fn labelled(path: &Path) -> Result<(), recurve::Error> {
    let rows = read_labelled(path, "text", "label")?;
    let labels = Labels::fit(rows.iter().map(|row| row.label.as_str()));
    assert!(rows.iter().all(|row| labels.index(&row.label).is_some()), "{labels:?}");
    let vocabulary = Vocabulary::fit(rows.iter().map(|row| row.text.as_str()), 100);
    for row in &rows {
        assert!(vocabulary.encode(&row.text).iter().all(|&id| (id as usize) < vocabulary.ids()));
    }
    Ok(())
}

#[test]
fn mutated_csv() {
    storm("data.csv", CSV, 4_000, 1, labelled);
}

#[test]
fn mutated_tsv() {
    storm("data.tsv", TSV, 4_000, 2, labelled);
}

#[test]
fn mutated_jsonl() {
    storm("data.jsonl", JSONL, 4_000, 3, labelled);
}

#[test]
fn mutated_word_index() {
    storm("index.json", INDEX, 4_000, 4, |path| {
        let vocabulary = Vocabulary::from_word_index(path, 9)?;
        assert!(vocabulary.ids() <= 9);
        Ok(())
    });
}

#[test]
fn mutated_files_annotated_read_back() {
    for (stream, name, seed) in [(5, "data.csv", CSV), (6, "data.tsv", TSV), (7, "data.jsonl", JSONL)] {
        storm(name, seed, 1_500, stream, |path| {
            let output = path.with_file_name(format!("out.{name}"));
            let _ = std::fs::remove_file(&output);
            let added = ["p".to_owned(), "class".to_owned()];
            let mut seen = Vec::new();
            let mut answer = |texts: &[String]| {
                seen.extend_from_slice(texts);
                let value = |_| vec![Value::Number(0.25), Value::Text("yes".to_owned())];
                Ok(texts.iter().map(value).collect())
            };
            let rows = match annotate(path, &output, "text", &added, &mut answer) {
                Ok(rows) => rows,
                Err(error) => {
                    assert!(!output.exists(), "an output is left behind");
                    return Err(error);
                }
            };
            let found = read_labelled(&output, "text", "class").unwrap();
            assert_eq!(found.len() as u64, rows);
            assert!(found.iter().all(|row| row.label == "yes"));
            assert!(found.iter().map(|row| &row.text).eq(&seen));
            let numbers = read_labelled(&output, "text", "p").unwrap();
            assert!(numbers.iter().all(|row| row.label == "0.25"));
            Ok(())
        });
    }
}

/// Writes `head`, then `body` again and again up to `bytes`.
fn large(path: &Path, head: &[u8], body: &[u8], bytes: usize) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    file.write_all(head).unwrap();
    for _ in 0..bytes / body.len() {
        file.write_all(body).unwrap();
    }
    file.flush().unwrap();
}

/// A record may have 16 MiB; while its buffer doubles, the old and the new one stand side by side.
const RECORD: usize = 56 * MIB;

#[test]
fn a_record_without_end_is_refused_before_it_is_held() {
    let _alone = MEASURING.lock().unwrap_or_else(|broken| broken.into_inner());
    let folder = tempfile::tempdir().unwrap();
    for (name, head, body, line) in [
        ("a.csv", &b"text,label\na,1\n"[..], &b"xxxxxxxxxxxxxxxx"[..], "line 3"),
        ("b.csv", b"text,label\n\"", b"a line\n,\"\"", "line 2"),
        ("c.csv", b"", b"column,", "line 1"),
        ("d.tsv", b"text\tlabel\n", b"\t\t\t\t\t\t\t\t", "line 2"),
        ("e.jsonl", b"{\"text\": \"", b"yyyyyyyyyyyyyyyy", "line 1"),
        ("f.jsonl", b"{\"text\": ", b"[[[[[[[[[[[[[[[[", "line 1"),
        ("g.csv", b"", b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "line 1"),
    ] {
        let path = folder.path().join(name);
        large(&path, head, body, 20 * MIB);
        let (result, peak) = peak_of(|| read_labelled(&path, "text", "label"));
        let message = result.unwrap_err().to_string();
        assert!(message.contains(line) && message.contains("16 MiB"), "{message}");
        assert!(peak < RECORD, "{name}: {peak} bytes");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn records_near_the_limit_are_read_or_refused_in_bounds() {
    let _alone = MEASURING.lock().unwrap_or_else(|broken| broken.into_inner());
    let folder = tempfile::tempdir().unwrap();
    for (name, head, body, tail, parts) in [
        // Many columns: no list of millions of names, no array of millions of fields.
        ("a.csv", &b""[..], &b"c,"[..], &b"text\n"[..], "more than 16384 columns"),
        ("b.tsv", b"text\tlabel\n", b"\t\t", b"\n", "more than 2 fields"),
        ("c.csv", b"text,label\n", b"\"\",", b"\n", "more than 2 fields"),
        // Nesting: refused where it is read, without a stack overflow.
        ("d.jsonl", b"{\"text\": ", b"[[", b"\n", "sequence"),
        ("e.jsonl", b"{\"x\": ", b"[[", b"\n", "EOF"),
        ("f.jsonl", b"{\"label\": 1, ", b"\"k\": 0, ", b"\"text\": \"\", \"label\": 1}\n", "stands twice"),
        ("g.jsonl", b"{", b"\"k\": 0, ", b"\"text\": 1}\n", "a string in \"text\""),
    ] {
        let path = folder.path().join(name);
        large(&path, head, body, 15 * MIB);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(tail).unwrap();
        let (result, peak) = peak_of(|| read_labelled(&path, "text", "label"));
        let message = result.unwrap_err().to_string();
        assert!(message.contains(parts) && message.len() < 4_000, "{name}: {message}");
        assert!(peak < RECORD, "{name}: {peak} bytes");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_word_index_of_any_size_is_refused_in_bounds() {
    let _alone = MEASURING.lock().unwrap_or_else(|broken| broken.into_inner());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.json");
    large(&path, b"{\"a\": 1", b", \"b\": 2", 20 * MIB);
    let (result, peak) = peak_of(|| Vocabulary::from_word_index(&path, 10_000));
    let message = result.unwrap_err().to_string();
    assert!(message.contains("larger than 16 MiB"), "{message}");
    assert!(peak < RECORD, "{peak} bytes");
}

#[test]
fn annotating_does_not_hold_the_file() {
    let _alone = MEASURING.lock().unwrap_or_else(|broken| broken.into_inner());
    let folder = tempfile::tempdir().unwrap();
    for (name, head, body) in [
        ("a.csv", &b"text,label\n"[..], &b"\"a few, quoted words\",1\n"[..]),
        ("b.tsv", b"text\tlabel\n", b"a few words of text\t1\n"),
        ("c.jsonl", b"", b"{\"text\": \"a few words\", \"label\": 1}\n"),
    ] {
        let path = folder.path().join(name);
        large(&path, head, body, 12 * MIB);
        let output = folder.path().join(format!("out.{name}"));
        let mut answer = |texts: &[String]| Ok(vec![vec![Value::Number(0.5)]; texts.len()]);
        let (rows, peak) = peak_of(|| annotate(&path, &output, "text", &["p".to_owned()], &mut answer));
        assert_eq!(rows.unwrap() as usize, 12 * MIB / body.len());
        assert!(peak < SMALL, "{name}: {peak} bytes");
        std::fs::remove_file(path).unwrap();
        std::fs::remove_file(output).unwrap();
    }
}

#[test]
fn a_file_of_tiny_rows_is_held_as_rows_and_no_more() {
    let _alone = MEASURING.lock().unwrap_or_else(|broken| broken.into_inner());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.csv");
    large(&path, b"text,label\n", b"a,1\n", 4 * MIB);
    let (rows, peak) = peak_of(|| read_labelled(&path, "text", "label"));
    assert_eq!(rows.unwrap().len(), MIB);
    // 56 bytes a row and two bytes of text, while the list of rows doubles: 100 for each of the row's 4 in the file.
    assert!(peak < 180 * MIB, "{peak} bytes");
}
