//! Damaged files of other programs: every truncation and single changed bytes all over of small Keras and PyTorch files,
//! and files made to hurt. An error or a model each time, never a panic, and memory in proportion to the file.

// A test that cannot go on fails; clippy allows that inside of test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

#[path = "counting/mod.rs"]
mod counting;

use counting::peak_of;
use recurve::data::text::Vocabulary;
use recurve::data::{Encoding, Words, batch::Side};
use recurve::interchange::{About, Weights, export, load_model};
use recurve::model::{Model, ModelConfig};
use recurve::rng::{Purpose, Rng};
use std::path::{Path, PathBuf};

/// Memory that reading a file of `len` bytes may take, where nothing in it is packed: its arrays, as they are in the file and
/// as they are used; its configuration, some tens of bytes for a byte of JSON; its words with their index. The fixed part
/// holds the buffers.
fn bound(len: usize) -> usize {
    64 * len + (1 << 20)
}

/// What became of the files of one test.
#[derive(Default)]
struct Tally {
    errors: usize,
    accepted: usize,
    worst: usize,
}

struct Victim {
    path: PathBuf,
    tally: Tally,
    _folder: tempfile::TempDir,
}

impl Victim {
    fn new(ending: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            path: folder.path().join(format!("damaged{ending}")),
            tally: Tally::default(),
            _folder: folder,
        }
    }

    /// Reads a damaged file, within the bound of `unpacked` bytes.
    fn read(&mut self, bytes: &[u8], unpacked: usize) {
        std::fs::write(&self.path, bytes).unwrap();
        let (result, peak) = peak_of(|| load_model(&self.path));
        assert!(peak <= bound(unpacked), "{peak} bytes for a file of {}", bytes.len());
        self.tally.worst = self.tally.worst.max(peak);
        match result {
            Ok(checkpoint) => {
                assert_eq!(checkpoint.state.params.len(), checkpoint.model.table.len());
                self.tally.accepted += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("damaged"), "the file is not named: {error}");
                self.tally.errors += 1;
            }
        }
    }

    /// Every truncation; every byte changed, to each of `values` other ones; here and there eight bytes a large number.
    fn suffer(mut self, name: &str, bytes: &[u8], values: usize) {
        self.read(bytes, bytes.len());
        assert_eq!(self.tally.accepted, 1, "{name} itself must be read");
        for end in 0..bytes.len() {
            self.read(&bytes[..end], bytes.len());
        }
        assert_eq!(self.tally.errors, bytes.len(), "{name}: a part of the file was taken for the whole");
        let mut changed = bytes.to_vec();
        for at in 0..bytes.len() {
            // Which ones come first changes from byte to byte.
            for mask in [1, 0x80, 0xff, 0x10, 0x08].iter().cycle().skip(at).take(values) {
                changed[at] = bytes[at] ^ mask;
                self.read(&changed, bytes.len());
            }
            changed[at] = bytes[at];
        }
        for at in (0..bytes.len().saturating_sub(8)).step_by(8) {
            let value: u64 = [u64::MAX, 1 << 40, u64::from(u32::MAX)][at / 8 % 3];
            changed[at..at + 8].copy_from_slice(&value.to_le_bytes());
            self.read(&changed, bytes.len());
            changed[at..at + 8].copy_from_slice(&bytes[at..at + 8]);
        }
        let Tally { errors, accepted, worst } = self.tally;
        println!(
            "{name}, {} bytes: {errors} errors, {accepted} still valid, peak {worst} bytes, no panic",
            bytes.len()
        );
    }
}

/// A small model, exported.
fn exported(ending: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("m{ending}"));
    let model =
        Model::new(ModelConfig { vocab: 6, embed: 3, hidden: 2, classes: 2, ..Default::default() }).unwrap();
    let mut rng = Rng::new(1, Purpose::User, 0);
    let params = (0..model.table.len()).map(|_| rng.normal() as f32).collect();
    let words = Words::Known(Vocabulary::from_words(vec!["a".into(), "ä".into()]).unwrap());
    let encoding = Encoding { maxlen: 8, padding: Side::Pre, truncating: Side::Pre, words };
    let about = About::new(&encoding, &["no".to_string(), "yes".to_string()]);
    export(&path, &Weights { model, params }, Some(&about)).unwrap();
    std::fs::read(path).unwrap()
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/interchange").join(name))
        .unwrap()
}

#[test]
fn pytorch_files() {
    Victim::new(".safetensors").suffer("our .safetensors", &exported(".safetensors"), 3);
    Victim::new(".safetensors").suffer("PyTorch's .safetensors", &fixture("torch-plain.safetensors"), 3);
}

#[cfg(feature = "keras")]
mod keras {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn our_keras_files() {
        Victim::new(".keras").suffer("our .keras", &exported(".keras"), 3);
        Victim::new(".weights.h5").suffer("our .weights.h5", &exported(".weights.h5"), 3);
    }

    #[test]
    fn kerass_own_weights() {
        Victim::new(".weights.h5").suffer("Keras' .weights.h5", &fixture("sequential-plain.weights.h5"), 1);
    }

    /// The members of a `.keras` file, to be put together anew.
    fn members(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut zip = zip::ZipArchive::new(std::io::Cursor::new(bytes)).unwrap();
        (0..zip.len())
            .map(|index| {
                let mut member = zip.by_index(index).unwrap();
                let mut content = Vec::new();
                member.read_to_end(&mut content).unwrap();
                (member.name().unwrap().to_string(), content)
            })
            .collect()
    }

    fn archive(members: &[(String, Vec<u8>)], method: zip::CompressionMethod) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, content) in members {
            zip.start_file(name, zip::write::SimpleFileOptions::default().compression_method(method))
                .unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    /// Damage that the archive's checksums do not reveal: the members change, the archive is whole.
    #[test]
    fn members_changed_inside_of_a_whole_archive() {
        let mut victim = Victim::new(".keras");
        let whole = members(&exported(".keras"));
        for which in 0..whole.len() {
            let mut changed = whole.clone();
            for at in 0..whole[which].1.len() {
                for value in [[b'0', b'['], [b'"', whole[which].1[at] ^ 0x80]][at % 2] {
                    changed[which].1[at] = value;
                    let bytes = archive(&changed, zip::CompressionMethod::Stored);
                    victim.read(&bytes, bytes.len());
                }
                changed[which].1[at] = whole[which].1[at];
            }
            for end in 0..whole[which].1.len() {
                changed[which].1.truncate(end);
                let bytes = archive(&changed, zip::CompressionMethod::Stored);
                victim.read(&bytes, bytes.len());
                changed[which].1.clone_from(&whole[which].1);
            }
        }
        let Tally { errors, accepted, worst } = victim.tally;
        println!(
            "members of our .keras: {errors} errors, {accepted} still valid, peak {worst} bytes, no panic"
        );
        assert!(errors > 1000, "too few of the damages were noticed: {errors}");
    }

    #[test]
    fn configurations_made_to_hurt() {
        let whole = members(&exported(".keras"));
        let config = whole.iter().position(|(name, _)| name == "config.json").unwrap();
        let mut victim = Victim::new(".keras");
        let large = (1 << 20) - 64;
        let deep = |open: &str, close: &str| open.repeat(large / 8) + &close.repeat(large / 8);
        let flood = |item: &str| format!("[{}0]", item.repeat(large / item.len()));
        for text in [
            deep("[", "]"),
            deep("{\"a\":", "}"),
            flood("0,"),
            flood("[],"),
            flood("{},"),
            flood("\"\","),
            format!("{{\"class_name\":\"Sequential\",\"config\":{{\"layers\":{}}}}}", flood("[],")),
            format!("{{\"class_name\":\"{}\"}}", "x".repeat(large)),
            " ".repeat(2 << 20),
        ] {
            let mut changed = whole.clone();
            changed[config].1 = text.clone().into_bytes();
            for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
                let bytes = archive(&changed, method);
                let errors = victim.tally.errors;
                victim.read(&bytes, text.len().min(1 << 20) + bytes.len());
                assert_eq!(victim.tally.errors, errors + 1);
            }
        }
        // A member that unpacks to a thousand times its size is refused before it is unpacked.
        let mut changed = whole.clone();
        let weights = whole.iter().position(|(name, _)| name == "model.weights.h5").unwrap();
        changed[weights].1 = vec![0; (64 << 20) + 1];
        let bytes = archive(&changed, zip::CompressionMethod::Deflated);
        let errors = victim.tally.errors;
        victim.read(&bytes, bytes.len());
        assert_eq!(victim.tally.errors, errors + 1);
    }
}
