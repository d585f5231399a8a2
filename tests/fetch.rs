//! Downloads, from a server on this machine that behaves as servers do: well, cut off, deaf to ranges, wrong.
// clippy.toml allows it in tests, but clippy does not count their helpers as such.
#![allow(clippy::unwrap_used)]
#![cfg(feature = "fetch")]

use recurve::data::fetch::{Download, IMDB_FILES, fetch};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// How the server answers one request.
#[derive(Clone, Copy)]
enum Answer {
    /// All or, if a range is asked for, that range.
    Good,
    /// Announces everything asked for, closes after this many bytes.
    CutAfter(usize),
    /// Everything, whatever range is asked for.
    Deaf,
    /// Everything, without saying how much that is.
    Unannounced,
    /// Chunks without an end.
    Endless,
    /// Everything, with one byte flipped.
    Flipped,
    /// A range that starts one byte before the one asked for.
    OtherRange,
    /// Nothing but a status.
    Status(u16),
}

/// The path of a request, and the first byte that it asks for if that is a range.
type Asked = (String, Option<usize>);

/// A server that gives one answer after the other and writes down what it was asked.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

fn serve(body: &'static [u8], answers: &'static [Answer]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/data/", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let path = lines.next().unwrap().unwrap().split(' ').nth(1).unwrap().to_string();
            let mut first = None;
            for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
                if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
                    first = Some(range.trim_end_matches('-').parse().unwrap());
                }
            }
            log.lock().unwrap().push((path, first));
            let from = first.unwrap_or(0);
            let head = |status: &str, more: String| {
                format!("HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n").into_bytes()
            };
            let range = |from: usize| {
                let length = body.len() - from;
                let more = format!("Content-Length: {length}\r\n");
                match first {
                    None => head("200 OK", more),
                    Some(_) => {
                        let range =
                            format!("Content-Range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
                        head("206 Partial Content", more + &range)
                    }
                }
            };
            let whole = head("200 OK", format!("Content-Length: {}\r\n", body.len()));
            let mut reply = match *answer {
                Answer::Good | Answer::CutAfter(_) => range(from),
                Answer::OtherRange => range(from - 1),
                Answer::Deaf | Answer::Flipped => whole,
                Answer::Unannounced => head("200 OK", String::new()),
                Answer::Endless => head("200 OK", "Transfer-Encoding: chunked\r\n".to_string()),
                Answer::Status(status) => head(&format!("{status} No"), "Content-Length: 0\r\n".to_string()),
            };
            match *answer {
                Answer::Good => reply.extend_from_slice(&body[from..]),
                Answer::CutAfter(n) => reply.extend_from_slice(&body[from..from + n]),
                Answer::OtherRange => reply.extend_from_slice(&body[from - 1..]),
                Answer::Deaf | Answer::Unannounced => reply.extend_from_slice(body),
                Answer::Flipped => {
                    let at = reply.len();
                    reply.extend_from_slice(body);
                    reply[at] ^= 1;
                }
                Answer::Endless | Answer::Status(_) => {}
            }
            let _ = stream.write_all(&reply);
            if matches!(answer, Answer::Endless) {
                let chunk = [b"4000\r\n".to_vec(), vec![b'x'; 0x4000], b"\r\n".to_vec()].concat();
                // Until the client hangs up.
                while stream.write_all(&chunk).is_ok() {}
            }
        }
    });
    Server { url, asked }
}

impl Server {
    fn asked_for(&self) -> Vec<Option<usize>> {
        let asked = self.asked.lock().unwrap();
        assert!(asked.iter().all(|(path, _)| path == "/data/some.bin"), "{asked:?}");
        asked.iter().map(|&(_, first)| first).collect()
    }
}

/// 200,000 bytes, more than one buffer, and their description.
fn content() -> (&'static [u8], Download) {
    let body: Vec<u8> = (0..200_000u32).map(|k| (k.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sha256: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    let file = Download { name: "some.bin", bytes: body.len() as u64, sha256: sha256.leak() };
    (body.leak(), file)
}

/// One call; the path or the message, and what `progress` heard.
fn get(server: &Server, file: &Download, folder: &Path) -> (Result<PathBuf, String>, Vec<u64>) {
    let mut heard = Vec::new();
    let got = fetch(&server.url, &[*file], folder, &mut |of, bytes| {
        assert_eq!(of.name, file.name);
        heard.push(bytes);
    });
    (got.map(|paths| paths[0].clone()).map_err(|error| error.to_string()), heard)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn downloads_then_leaves_the_right_file_alone() {
    let (body, file) = content();
    let server = serve(body, &[Answer::Good]);
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("not/yet/there");
    let (path, heard) = get(&server, &file, &inner);
    assert_eq!(std::fs::read(path.unwrap()).unwrap(), body);
    assert_eq!((heard.first(), heard.last()), (Some(&0), Some(&200_000)));
    assert!(heard.is_sorted() && heard.len() > 2);
    assert_eq!(names(&inner), ["some.bin"]);
    // The server has no second answer: a second request would hang or fail.
    let (path, heard) = get(&server, &file, &inner);
    assert!(path.is_ok());
    assert_eq!(heard, [200_000]);
    assert_eq!(server.asked_for(), [None]);
}

#[test]
fn continues_after_a_cut_connection() {
    let (body, file) = content();
    let server = serve(body, &[Answer::CutAfter(70_000), Answer::CutAfter(30_000), Answer::Good]);
    let folder = tempfile::tempdir().unwrap();
    for kept in [70_000, 100_000] {
        let (got, _) = get(&server, &file, folder.path());
        let message = got.unwrap_err();
        assert!(
            message.contains(&format!("{kept} of 200000 bytes")) && message.contains("continue"),
            "{message}"
        );
        assert_eq!(names(folder.path()), ["some.bin.part"]);
        assert_eq!(std::fs::read(folder.path().join("some.bin.part")).unwrap(), body[..kept]);
    }
    let (path, heard) = get(&server, &file, folder.path());
    assert_eq!(std::fs::read(path.unwrap()).unwrap(), body);
    assert_eq!((heard[0], heard.is_sorted()), (100_000, true));
    assert_eq!(server.asked_for(), [None, Some(70_000), Some(100_000)]);
    assert_eq!(names(folder.path()), ["some.bin"]);
}

#[test]
fn starts_over_where_the_server_knows_no_ranges() {
    let (body, file) = content();
    let cases: [&'static [Answer]; 4] = [
        &[Answer::Deaf],
        &[Answer::Unannounced],
        &[Answer::OtherRange, Answer::Good],
        &[Answer::Status(416), Answer::Good],
    ];
    for answers in cases {
        let server = serve(body, answers);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("some.bin.part"), &body[..1000]).unwrap();
        let (path, heard) = get(&server, &file, folder.path());
        assert_eq!(std::fs::read(path.unwrap()).unwrap(), body);
        assert!(heard.contains(&1000) && heard.contains(&0));
        let asked = server.asked_for();
        assert_eq!(asked, [Some(1000), None][..answers.len()]);
    }
}

#[test]
fn a_partial_file_of_something_else_is_thrown_away() {
    let (body, file) = content();
    let part = |folder: &tempfile::TempDir, bytes: &[u8]| {
        std::fs::write(folder.path().join("some.bin.part"), bytes).unwrap();
    };
    // Continued, found wrong, downloaded anew.
    let server = serve(body, &[Answer::Good, Answer::Good]);
    let folder = tempfile::tempdir().unwrap();
    part(&folder, &[0; 5000]);
    assert_eq!(std::fs::read(get(&server, &file, folder.path()).0.unwrap()).unwrap(), body);
    assert_eq!(server.asked_for(), [Some(5000), None]);
    // As long as the file, or longer: nothing to continue.
    for len in [200_000, 200_001] {
        let server = serve(body, &[Answer::Good]);
        let folder = tempfile::tempdir().unwrap();
        part(&folder, &vec![0; len]);
        assert_eq!(std::fs::read(get(&server, &file, folder.path()).0.unwrap()).unwrap(), body);
        assert_eq!(server.asked_for(), [None]);
    }
    // Whole and right, but the last run was stopped before it could rename: no request at all.
    let server = serve(body, &[]);
    let folder = tempfile::tempdir().unwrap();
    part(&folder, body);
    assert_eq!(std::fs::read(get(&server, &file, folder.path()).0.unwrap()).unwrap(), body);
    assert_eq!(names(folder.path()), ["some.bin"]);
}

#[test]
fn a_wrong_checksum_is_refused_and_what_was_there_stays() {
    let (body, file) = content();
    let server = serve(body, &[Answer::Flipped, Answer::Good]);
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("some.bin");
    std::fs::write(&target, b"older").unwrap();
    let message = get(&server, &file, folder.path()).0.unwrap_err();
    assert!(message.contains("SHA-256") && message.contains(file.sha256) && message.contains("thrown away"));
    assert!(message.contains(&server.url), "{message}");
    assert_eq!(std::fs::read(&target).unwrap(), b"older");
    assert_eq!(names(folder.path()), ["some.bin"]);
    // A file of the right length and other content is replaced too, by a verified download only.
    std::fs::write(&target, vec![7; 200_000]).unwrap();
    get(&server, &file, folder.path()).0.unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), body);
}

#[test]
fn a_body_that_is_too_long_is_cut_off() {
    let (body, file) = content();
    let short = Download { bytes: 150_000, ..file };
    for answers in [&[Answer::Good][..], &[Answer::Unannounced], &[Answer::Endless]] {
        let server = serve(body, answers);
        let folder = tempfile::tempdir().unwrap();
        let (got, heard) = get(&server, &short, folder.path());
        let message = got.unwrap_err();
        assert!(message.contains("more than the expected 150000 bytes"), "{message}");
        assert!(heard.iter().all(|&bytes| bytes <= 150_000));
        assert!(names(folder.path()).is_empty());
    }
}

#[test]
fn a_body_that_is_too_short_is_kept_for_later() {
    let (body, file) = content();
    let longer = Download { bytes: 250_000, ..file };
    let server = serve(body, &[Answer::Unannounced]);
    let folder = tempfile::tempdir().unwrap();
    let message = get(&server, &longer, folder.path()).0.unwrap_err();
    assert!(message.contains("200000 of 250000"), "{message}");
    assert_eq!(names(folder.path()), ["some.bin.part"]);
}

#[test]
fn a_missing_file_and_a_missing_server_are_named() {
    let (body, file) = content();
    let server = serve(body, &[Answer::Status(404), Answer::Status(500)]);
    let folder = tempfile::tempdir().unwrap();
    for status in ["404", "500"] {
        let message = get(&server, &file, folder.path()).0.unwrap_err();
        assert!(message.contains(status) && message.contains("/data/some.bin"), "{message}");
        assert!(names(folder.path()).is_empty());
    }
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = Server { url: format!("http://{port}"), asked: Arc::default() };
    let message = get(&nobody, &file, folder.path()).0.unwrap_err();
    assert!(message.starts_with(&format!("cannot download http://{port}/some.bin")), "{message}");
    assert!(names(folder.path()).is_empty());
}

#[test]
fn two_processes_do_not_share_a_partial_file() {
    let (body, file) = content();
    let server = serve(body, &[]);
    let folder = tempfile::tempdir().unwrap();
    let part = std::fs::File::create(folder.path().join("some.bin.part")).unwrap();
    part.lock().unwrap();
    let message = get(&server, &file, folder.path()).0.unwrap_err();
    assert!(message.contains("another process"), "{message}");
}

#[test]
fn the_imdb_files_are_described() {
    for file in IMDB_FILES {
        assert!(file.sha256.len() == 64 && file.sha256.bytes().all(|b| b.is_ascii_hexdigit()));
        assert_eq!(file.sha256, file.sha256.to_lowercase());
    }
    assert_eq!(IMDB_FILES.map(|file| file.bytes), [17_464_789, 1_641_221]);
}
