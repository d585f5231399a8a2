//! Raw text to ids: Keras' tokenizer and a vocabulary.

use super::{INDEX_FROM, OOV, START};
use crate::error::{Error, Result};
use crate::rng::{Purpose, Rng};
use serde::de::{Deserializer as _, MapAccess, Visitor};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io::Read as _;
use std::path::Path;

/// What Keras' tokenizer replaces by a space; the apostrophe is not among them.
const FILTERS: &str = "!\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n";

/// A character between words.
///
/// Besides Keras' filters and the space these are carriage return, vertical tab and form feed: Keras would leave the
/// `\r` of a CRLF line end on the last word. Other white space (a no-break space, U+0085) stays part of words as
/// in Keras, whose IMDB index holds such words.
fn separates(c: char) -> bool {
    matches!(c, ' ' | '\r' | '\x0b' | '\x0c') || FILTERS.contains(c)
}

/// Splits text as Keras' `text_to_word_sequence` does: lower case, the punctuation filter, spaces.
///
/// One deviation: carriage return, vertical tab and form feed separate words too.
pub fn tokenize(text: &str) -> Vec<String> {
    // Lower case comes first, as in Keras: how a capital sigma ends depends on what stands beside it.
    text.to_lowercase().split(separates).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The words that have ids: word k of the list (0-based) has rank k+1 and id `k + 1 + INDEX_FROM`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vocabulary {
    words: Vec<String>,
    /// Word → id.
    index: HashMap<String, u32>,
}

/// The largest word index that is read; Keras' has 1.6 MB.
const MAX_INDEX_BYTES: u64 = 16 << 20;

impl Vocabulary {
    /// The most frequent words of `texts`; ids stay below `num_words`. Of equally frequent words the one met first
    /// comes first, as in Keras.
    pub fn fit<'a>(texts: impl IntoIterator<Item = &'a str>, num_words: usize) -> Self {
        // Word → (place of first appearance, count).
        let mut seen: HashMap<String, (usize, u64)> = HashMap::new();
        for text in texts {
            for word in tokenize(text) {
                let place = seen.len();
                seen.entry(word).or_insert((place, 0)).1 += 1;
            }
        }
        let mut ranked: Vec<(String, (usize, u64))> = seen.into_iter().collect();
        ranked.sort_unstable_by_key(|&(_, (place, count))| (std::cmp::Reverse(count), place));
        ranked.truncate(most_words(num_words));
        Self::index(ranked.into_iter().map(|(word, _)| word).collect())
    }

    /// Keras' `imdb_word_index.json`, word → rank, as far as ids stay below `num_words`.
    pub fn from_word_index(path: &Path, num_words: usize) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
        let mut bytes = Vec::new();
        file.take(MAX_INDEX_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
        if bytes.len() as u64 > MAX_INDEX_BYTES {
            return Err(Error::format(
                path,
                "",
                format!(
                    "the file is larger than {} MiB, which no word index is; expected a JSON object of word to rank \
                     such as Keras' imdb_word_index.json",
                    MAX_INDEX_BYTES >> 20
                ),
            ));
        }
        let words = bytes.strip_prefix(BOM).unwrap_or(&bytes);
        let cut = most_words(num_words);
        let mut json = serde_json::Deserializer::from_slice(words);
        let ranked = json.deserialize_map(WordIndex { cut }).and_then(|ranked| json.end().map(|()| ranked));
        let mut ranked = ranked.map_err(|error| {
            Error::format(
                path,
                format!("line {}, column {}", error.line(), error.column()),
                format!(
                    "{}; expected a JSON object of word to rank (1, 2, …) such as Keras' imdb_word_index.json",
                    json_message(&error)
                ),
            )
        })?;
        ranked.sort_unstable();
        for (expected, &(rank, ref word)) in (1u64..).zip(&ranked) {
            if rank > expected {
                return Err(Error::format(
                    path,
                    "",
                    format!(
                        "no word has rank {expected}, though {} has rank {rank}; ranks must be 1, 2, 3, … \
                         without a gap",
                        quoted(word)
                    ),
                ));
            }
            if rank < expected {
                // Sorted: the word before holds the same rank.
                return Err(Error::format(
                    path,
                    "",
                    format!(
                        "{} and another word both have rank {rank}; every word needs a rank of its own",
                        quoted(word)
                    ),
                ));
            }
        }
        let words = ranked.into_iter().map(|(_, word)| word).collect();
        Self::from_words(words).map_err(|error| Error::format(path, "", error.to_string()))
    }

    /// From words in the order of their ranks, as [`Self::words`] gives them (a model file).
    pub fn from_words(words: Vec<String>) -> Result<Self> {
        if words.len() > most_words(u32::MAX as usize) {
            return Err(Error::Failed(format!(
                "a vocabulary of {} words has more words than there are ids; lower --num-words",
                words.len()
            )));
        }
        if let Some(k) = words.iter().position(String::is_empty) {
            return Err(Error::Failed(format!(
                "the word of rank {} is empty; every rank needs a word",
                k + 1
            )));
        }
        let count = words.len();
        let vocabulary = Self::index(words);
        if vocabulary.index.len() < count {
            // The index keeps the last rank of a repeated word, so an earlier rank finds another id than its own.
            let twice =
                vocabulary.words.iter().zip(1..).find(|&(word, rank)| {
                    vocabulary.index.get(word).is_some_and(|&id| id != rank + INDEX_FROM)
                });
            let (word, rank) = twice.map_or(("", 0), |(word, rank)| (word.as_str(), rank));
            return Err(Error::Failed(format!(
                "the word {} stands in the vocabulary twice, first with rank {rank}; every word needs one rank",
                quoted(word)
            )));
        }
        Ok(vocabulary)
    }

    fn index(words: Vec<String>) -> Self {
        let index = words.iter().cloned().zip(1 + INDEX_FROM..).collect();
        Self { words, index }
    }

    /// The words in the order of their ranks.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// One more than the largest id.
    pub fn ids(&self) -> usize {
        match self.words.len() {
            0 => OOV as usize + 1,
            words => words + 1 + INDEX_FROM as usize,
        }
    }

    /// `[START] + ids`, unknown words as `OOV`.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = vec![START];
        ids.extend(tokenize(text).iter().map(|word| self.index.get(word).copied().unwrap_or(OOV)));
        ids
    }
}

/// UTF-8's byte order mark, which Windows programs write at the head of a file.
pub(super) const BOM: &[u8] = b"\xef\xbb\xbf";

/// A name from a file as messages show it: escaped, and cut where it is long.
pub(super) fn quoted(name: &str) -> String {
    match name.char_indices().nth(40) {
        Some((end, _)) => format!("{:?}…", &name[..end]),
        None => format!("{name:?}"),
    }
}

/// serde_json's message without its place (which is that of one line, or stands elsewhere) and without the rest of
/// a long value.
pub(super) fn json_message(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    match message.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

/// How many words have ids below `num_words`.
fn most_words(num_words: usize) -> usize {
    // Ids are u32, whatever the user asks for.
    num_words.min(u32::MAX as usize).saturating_sub(1 + INDEX_FROM as usize)
}

/// Reads `{word: rank, …}`, keeping the ranks up to `cut`: the whole index never stands in memory as a map.
struct WordIndex {
    cut: usize,
}

/// Borrowed where the JSON holds it as it is.
#[derive(serde::Deserialize)]
struct Word<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Visitor<'de> for WordIndex {
    type Value = Vec<(u64, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of word to rank")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut ranked = Vec::new();
        // Most words are passed over: what has no escape is not copied.
        while let Some(Word(word)) = map.next_key::<Word<'_>>()? {
            let rank: u64 = map.next_value()?;
            if rank == 0 {
                let message = format!("{} has rank 0, but ranks start at 1", quoted(&word));
                return Err(serde::de::Error::custom(message));
            }
            if usize::try_from(rank).is_ok_and(|rank| rank <= self.cut) {
                ranked.push((rank, word.into_owned()));
            }
        }
        Ok(ranked)
    }
}

/// Class names and what the file's labels mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Class names by index.
    pub names: Vec<String>,
}

impl Labels {
    /// The classes of a training part: sorted by number if every label is a number, by name otherwise.
    ///
    /// Equal numbers (`1`, `1.0`) are one class, named as it was first written. Surrounding white space is no part
    /// of a label.
    pub fn fit<'a>(labels: impl IntoIterator<Item = &'a str>) -> Self {
        let mut names: Vec<&str> = Vec::new();
        let mut seen = HashMap::new();
        for label in labels {
            let label = label.trim();
            if let Entry::Vacant(free) = seen.entry(label) {
                free.insert(());
                names.push(label);
            }
        }
        if names.iter().all(|name| Number::parse(name).is_some()) {
            // Stable: of equal numbers the one written first stays first and names the class.
            names.sort_by_key(|name| Number::parse(name));
            names.dedup_by_key(|name| Number::parse(name));
        } else {
            names.sort_unstable();
        }
        Self { names: names.into_iter().map(str::to_owned).collect() }
    }

    /// The class of a label. Where every class is a number, so is it compared (`1.0` finds `1`).
    pub fn index(&self, label: &str) -> Option<u32> {
        let label = label.trim();
        let number = Number::parse(label);
        // The two quick searches hit where `fit` sorted the names; the slow ones are for names in a caller's order
        // and for other spellings of a number. The same text is the right class in every case.
        let by_name = self.names.binary_search_by(|name| name.as_str().cmp(label)).ok();
        let by_number = || self.names.binary_search_by(|name| Number::parse(name).cmp(&number)).ok();
        let at = by_name
            .or_else(|| by_number().filter(|&at| self.names[at] == label))
            .or_else(|| self.names.iter().position(|name| name == label))
            .or_else(|| {
                number?;
                let all_numbers = self.names.iter().all(|name| Number::parse(name).is_some());
                let equal = |name: &String| all_numbers && Number::parse(name) == number;
                self.names.iter().position(equal)
            });
        at.and_then(|at| u32::try_from(at).ok())
    }
}

/// A label's value, where it is a finite number.
#[derive(Clone, Copy, Debug)]
enum Number {
    /// Every whole number within reach, however it was written: identifiers need more digits than an f64 holds.
    Whole(i128),
    /// Fractions, and what is beyond an i128.
    Real(f64),
}

impl Number {
    fn parse(text: &str) -> Option<Self> {
        // Rust also reads "nan" and "infinity", which are words here.
        if !text.ends_with(|c: char| c.is_ascii_digit() || c == '.') {
            return None;
        }
        if let Ok(whole) = text.parse() {
            return Some(Number::Whole(whole));
        }
        let real: f64 = text.parse().ok()?;
        // -2^127 is an i128, 2^127 is not.
        let limit = 2f64.powi(127);
        if real.fract() == 0.0 && (-limit..limit).contains(&real) {
            return Some(Number::Whole(real as i128));
        }
        real.is_finite().then_some(Number::Real(real))
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Number {}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Number {
    /// Exact: a fraction stays below 2^53, where whole numbers turn into f64 without rounding, and what is beyond an
    /// i128 can tie with a rounded one only from outside.
    fn cmp(&self, other: &Self) -> Ordering {
        match (*self, *other) {
            (Number::Whole(a), Number::Whole(b)) => a.cmp(&b),
            (Number::Real(a), Number::Real(b)) => a.total_cmp(&b),
            (Number::Whole(a), Number::Real(b)) => (a as f64).total_cmp(&b).then(Ordering::Less),
            (Number::Real(a), Number::Whole(b)) => a.total_cmp(&(b as f64)).then(Ordering::Greater),
        }
    }
}

/// A seeded split that keeps each class' share: row indices (ascending) of the rest and of the drawn fraction.
///
/// Of a class with n ≥ 2 rows round(n · `fraction`) are drawn, at least one and at most n - 1; a single row stays in
/// the rest. A `fraction` that is not above 0 draws nothing.
pub fn stratified_split(y: &[u32], fraction: f64, seed: u64, index: u32) -> (Vec<u32>, Vec<u32>) {
    let mut classes: std::collections::BTreeMap<u32, Vec<u32>> = std::collections::BTreeMap::new();
    for (row, &class) in (0u32..).zip(y) {
        classes.entry(class).or_default().push(row);
    }
    let mut rng = Rng::new(seed, Purpose::Split, index);
    let (mut rest, mut drawn) = (Vec::with_capacity(y.len()), Vec::new());
    for rows in classes.values() {
        let order = rng.permutation(rows.len() as u32);
        let most = rows.len().saturating_sub(1);
        let take = if fraction > 0.0 && most > 0 {
            ((rows.len() as f64 * fraction).round() as usize).clamp(1, most)
        } else {
            0
        };
        let (taken, left) = order.split_at(take);
        drawn.extend(taken.iter().map(|&k| rows[k as usize]));
        rest.extend(left.iter().map(|&k| rows[k as usize]));
    }
    rest.sort_unstable();
    drawn.sort_unstable();
    (rest, drawn)
}
