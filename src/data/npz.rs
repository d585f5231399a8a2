//! `.npz` archives and `.npy` arrays, validated before anything is parsed or allocated.
//!
//! A `.npz` file is a ZIP archive of `.npy` members. [`Archive`] checks and walks the archive, `npyz` decodes numbers, and
//! [`pickle`] reads object arrays; but the latter two see only what was checked here first: the `.npy` header, by a small
//! parser of its own. `npyz` is handed a header that was written here, never the file's, because nested brackets cost its
//! parser exponential time and a declared length gigabytes.
//!
//! Memory grows with the bytes that really came out of the archive, never with a number that stands in it.

use super::Sequences;
use super::pickle::{self, RowSink};
use crate::archive::{Archive, Kind, member_place};
use crate::error::{Error, Result};
use crate::files;
use std::fs::File;
use std::io::{BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipWriter};

const KIND: Kind = Kind { name: ".npz", maker: "np.savez" };
/// The longest `.npy` header that is read; NumPy itself warns at 10,000 bytes.
const MAX_HEADER: u64 = 64 << 10;
/// NumPy 1's limit on dimensions.
const MAX_DIMS: usize = 32;

/// The values of an array, in C order whatever order the file has; `R` is what pickled rows are collected in.
#[derive(Clone, Debug, PartialEq)]
pub enum Values<R = Sequences<i64>> {
    /// Integers of any width and bools (0 and 1).
    Int(Vec<i64>),
    /// Floats of 4 or 8 bytes.
    Float(Vec<f64>),
    /// Pickled rows of integers.
    Rows(R),
}

/// An array of an archive.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<R = Sequences<i64>> {
    /// Dimensions; none for a scalar. Their product is the number of values (of rows, for [`Values::Rows`], where
    /// the shape is `[rows]`).
    pub shape: Vec<usize>,
    /// Values.
    pub values: Values<R>,
}

struct Member {
    /// Without `.npy`.
    name: String,
    index: usize,
}

/// An open `.npz` file.
pub struct NpzArchive<R = BufReader<File>> {
    archive: Archive<R>,
    members: Vec<Member>,
}

impl NpzArchive {
    /// Opens a file and reads its directory; arrays are read one by one with [`read`](NpzArchive::read).
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        Self::from_reader(path, BufReader::new(file))
    }
}

impl<R: Read + Seek> NpzArchive<R> {
    /// The same from any reader; `path` is its name in messages.
    pub fn from_reader(path: &Path, reader: R) -> Result<Self> {
        let archive = Archive::from_reader(path, KIND, reader)?;
        // What is no array (NumPy lets one add other files by hand) is no concern of ours.
        let member = |(index, name): (usize, String)| {
            Some(Member { name: name.strip_suffix(".npy")?.to_string(), index })
        };
        let members = archive.names()?.into_iter().enumerate().filter_map(member).collect();
        Ok(Self { archive, members })
    }

    /// The file's name, as messages give it.
    pub fn path(&self) -> &Path {
        self.archive.path()
    }

    /// Names of the arrays, in the archive's order and without `.npy`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.name.as_str())
    }

    /// True if there is an array of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.names().any(|known| known == name)
    }

    /// A [`Error::Format`] about the array `name`.
    pub fn error(&self, name: &str, message: impl Into<String>) -> Error {
        Error::format(self.path(), place(name), message)
    }

    /// Reads one array.
    pub fn read(&mut self, name: &str) -> Result<Array> {
        self.read_rows(name, Sequences::new())
    }

    /// The same, with pickled rows collected in `rows`.
    pub fn read_rows<S: RowSink>(&mut self, name: &str, rows: S) -> Result<Array<S>> {
        self.member(name)?.read(rows)
    }

    /// True if the array is one of objects, as far as its header can be read.
    pub fn holds_objects(&mut self, name: &str) -> bool {
        let header = self.member(name).and_then(|mut member| member.header());
        header.is_ok_and(|header| header.element == Element::Object)
    }

    /// A member from its first byte on.
    fn member<'a>(&'a mut self, name: &'a str) -> Result<NpyReader<'a, impl Read>> {
        let Some(index) = self.members.iter().find(|member| member.name == name).map(|member| member.index)
        else {
            let known: Vec<&str> = self.names().take(20).collect();
            let known = if known.is_empty() { "no arrays at all".to_string() } else { known.join(", ") };
            return Err(Error::format(
                self.path(),
                "",
                format!("there is no array {name:?}; the archive holds {known}"),
            ));
        };
        let path = self.path().to_path_buf();
        let (declared, stream) = self.archive.member(index, &place(name))?;
        Ok(NpyReader { path, name, stream, declared, at: 0 })
    }
}

fn place(name: &str) -> String {
    member_place(&format!("{name}.npy"))
}

/// What an element is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    Bool,
    Signed(u8),
    Unsigned(u8),
    Float(u8),
    Object,
}

/// What a header says, checked.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    element: Element,
    big_endian: bool,
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    fn element_bytes(&self) -> u64 {
        match self.element {
            Element::Bool => 1,
            Element::Signed(size) | Element::Unsigned(size) | Element::Float(size) => u64::from(size),
            Element::Object => 0,
        }
    }

    /// Bytes of all elements; none if that overflows.
    fn data_bytes(&self) -> Option<u64> {
        self.shape
            .iter()
            .try_fold(self.element_bytes(), |product, &dim| product.checked_mul(u64::try_from(dim).ok()?))
    }

    /// As NumPy writes it.
    fn descr(&self) -> String {
        let (kind, size) = match self.element {
            Element::Bool => ('b', 1),
            Element::Signed(size) => ('i', size),
            Element::Unsigned(size) => ('u', size),
            Element::Float(size) => ('f', size),
            Element::Object => return "|O".to_string(),
        };
        let order = match (size, self.big_endian) {
            (1, _) => '|',
            (_, true) => '>',
            (_, false) => '<',
        };
        format!("{order}{kind}{size}")
    }
}

/// The first bytes of a version 1.0 `.npy` file, to where the data starts.
fn header_bytes(descr: &str, shape: &[usize]) -> Vec<u8> {
    let mut dims: String = shape.iter().map(|dim| format!("{dim}, ")).collect();
    // Python's way: a comma alone marks a tuple of one, and no comma ends a longer one.
    dims.truncate(dims.trim_end_matches(if shape.len() == 1 { " " } else { ", " }).len());
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    // Data starts at a multiple of 64, the newline stands just before it.
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text.push_str(&" ".repeat(length - 1 - text.len()));
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// Reads one member from its first byte to its last.
struct NpyReader<'a, S> {
    path: PathBuf,
    name: &'a str,
    stream: S,
    /// Bytes that the member should have.
    declared: u64,
    at: u64,
}

impl<S: Read> NpyReader<'_, S> {
    fn error(&self, message: impl Into<String>) -> Error {
        self.error_at(self.at, message)
    }

    fn error_at(&self, at: u64, message: impl Into<String>) -> Error {
        Error::format(&self.path, format!("{}, byte {at}", place(self.name)), message)
    }

    /// A failed read of the member: the system's fault, or the file's.
    fn unreadable(&self, source: std::io::Error) -> Error {
        match source.kind() {
            _ if source.raw_os_error().is_some() => Error::io(&self.path, "read")(source),
            std::io::ErrorKind::UnexpectedEof => {
                self.error(format!("the member ends before its {} bytes; the file is damaged", self.declared))
            }
            _ => self.error(format!("the member cannot be unpacked ({source}); the file is damaged")),
        }
    }

    fn exact(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.stream.read_exact(bytes).map_err(|error| self.unreadable(error))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn read<R: RowSink>(mut self, rows: R) -> Result<Array<R>> {
        let header = self.header()?;
        let left = self.declared.saturating_sub(self.at);
        if header.element == Element::Object {
            return self.objects(&header.shape, left, rows);
        }
        match header.data_bytes() {
            Some(needed) if needed == left => {}
            needed => {
                let needed = needed.map_or("more than 2^64".to_string(), |needed| needed.to_string());
                return Err(self.error(format!(
                    "shape {:?} of {} needs {needed} bytes, but {left} follow the header; the file is damaged",
                    header.shape,
                    header.descr()
                )));
            }
        }
        let values = match header.element {
            Element::Bool => Values::Int(self.numbers(&header, |x: bool| Some(i64::from(x)))?),
            Element::Signed(1) => Values::Int(self.numbers(&header, |x: i8| Some(i64::from(x)))?),
            Element::Signed(2) => Values::Int(self.numbers(&header, |x: i16| Some(i64::from(x)))?),
            Element::Signed(4) => Values::Int(self.numbers(&header, |x: i32| Some(i64::from(x)))?),
            Element::Signed(_) => Values::Int(self.numbers(&header, |x: i64| Some(x))?),
            Element::Unsigned(1) => Values::Int(self.numbers(&header, |x: u8| Some(i64::from(x)))?),
            Element::Unsigned(2) => Values::Int(self.numbers(&header, |x: u16| Some(i64::from(x)))?),
            Element::Unsigned(4) => Values::Int(self.numbers(&header, |x: u32| Some(i64::from(x)))?),
            Element::Unsigned(_) => Values::Int(self.numbers(&header, |x: u64| i64::try_from(x).ok())?),
            Element::Float(4) => Values::Float(self.numbers(&header, |x: f32| Some(f64::from(x)))?),
            Element::Float(_) => Values::Float(self.numbers(&header, |x: f64| Some(x))?),
            Element::Object => return Err(self.error("objects are not numbers")),
        };
        self.end()?;
        Ok(Array { shape: header.shape, values })
    }

    fn header(&mut self) -> Result<Header> {
        let mut start = [0u8; 8];
        if self.declared < 10 {
            return Err(self.error(format!(
                "the member has {} bytes, too few for a .npy file; the file is damaged",
                self.declared
            )));
        }
        self.exact(&mut start)?;
        if start[..6] != *b"\x93NUMPY" {
            return Err(
                self.error_at(0, "the member does not start like a .npy file; save arrays with np.savez")
            );
        }
        let length = match (start[6], start[7]) {
            (1, 0) => {
                let mut length = [0u8; 2];
                self.exact(&mut length)?;
                u64::from(u16::from_le_bytes(length))
            }
            (2 | 3, 0) => {
                let mut length = [0u8; 4];
                self.exact(&mut length)?;
                u64::from(u32::from_le_bytes(length))
            }
            (major, minor) => {
                return Err(
                    self.error_at(6, format!(".npy version {major}.{minor}, expected 1.0, 2.0 or 3.0"))
                );
            }
        };
        let limit = MAX_HEADER.min(self.declared.saturating_sub(self.at));
        if length > limit {
            return Err(self.error_at(
                8,
                format!("a header of {length} bytes, expected at most {limit}; the file is damaged"),
            ));
        }
        let first = self.at;
        let mut text = vec![0u8; length as usize];
        self.exact(&mut text)?;
        parse_header(&text).map_err(|(at, message)| self.error_at(first + at as u64, message))
    }

    /// The elements, in C order.
    fn numbers<T: npyz::Deserialize, V: Copy>(
        &mut self,
        header: &Header,
        convert: impl Fn(T) -> Option<V>,
    ) -> Result<Vec<V>> {
        // Written anew from what was checked, so that npyz parses nothing that comes from the file. Its data is
        // taken as one dimension in file order.
        let size = header.element_bytes().max(1);
        let n = header.data_bytes().unwrap_or(0) / size;
        let flat = header_bytes(&header.descr(), &[usize::try_from(n).unwrap_or(usize::MAX)]);
        let flat = npyz::NpyHeader::from_reader(&flat[..]).map_err(|error| self.unreadable(error))?;
        let elements = npyz::NpyFile::with_header(flat, &mut self.stream)
            .data::<T>()
            .map_err(|error| Error::Failed(format!("{}: {error}", header.descr())))?;
        let mut values = Vec::new();
        let mut failed = None;
        for element in elements {
            match element.map(&convert) {
                Ok(Some(value)) => {
                    values.push(value);
                    self.at += size;
                }
                other => {
                    failed = Some(other.err());
                    break;
                }
            }
        }
        match failed {
            None => {}
            Some(Some(error)) => return Err(self.unreadable(error)),
            Some(None) => return Err(self.error("an integer above 2^63 - 1, the largest that is read")),
        }
        if header.fortran && header.shape.len() > 1 {
            values = to_c_order(&values, &header.shape);
        }
        Ok(values)
    }

    fn objects<R: RowSink>(&mut self, shape: &[usize], left: u64, mut rows: R) -> Result<Array<R>> {
        let mut bytes = Vec::new();
        self.stream.by_ref().take(left).read_to_end(&mut bytes).map_err(|error| self.unreadable(error))?;
        let first = self.at;
        self.at += bytes.len() as u64;
        if bytes.len() as u64 != left {
            return Err(self.unreadable(std::io::ErrorKind::UnexpectedEof.into()));
        }
        // The checksum comes before the pickle: of a damaged file one wants to hear that it is damaged.
        self.end()?;
        let n = pickle::read_rows(&bytes, shape, &mut rows).map_err(|fault| match fault.byte {
            Some(byte) => self.error_at(first + byte as u64, fault.message),
            None => Error::format(&self.path, place(self.name), fault.message),
        })?;
        Ok(Array { shape: vec![n], values: Values::Rows(rows) })
    }

    /// The member must end here; its checksum is compared when its end is reached.
    fn end(&mut self) -> Result<()> {
        let mut more = [0u8; 1];
        match self.stream.read(&mut more) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.error(format!(
                "the member goes on after the {} bytes it is said to have; the file is damaged",
                self.declared
            ))),
            Err(error) => Err(self.unreadable(error)),
        }
    }
}

/// Turns values of the given shape from Fortran order, first index fastest, into C order, last index fastest.
fn to_c_order<V: Copy>(values: &[V], shape: &[usize]) -> Vec<V> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = 1;
    for &dim in shape {
        strides.push(stride);
        // The product of the dimensions is the number of values; only with none can a partial product be more.
        stride = dim.saturating_mul(stride);
    }
    let mut at = vec![0; shape.len()];
    let mut from = 0;
    let mut ordered = Vec::with_capacity(values.len());
    while ordered.len() < values.len() {
        ordered.push(values[from]);
        for axis in (0..shape.len()).rev() {
            at[axis] += 1;
            from += strides[axis];
            if at[axis] < shape[axis] {
                break;
            }
            from -= at[axis] * strides[axis];
            at[axis] = 0;
        }
    }
    ordered
}

/// Where a header went wrong, and how.
type HeaderFault = (usize, String);

/// Parses a header: a Python dictionary of exactly `descr` (one flat string), `fortran_order` and `shape`.
fn parse_header(text: &[u8]) -> Result<Header, HeaderFault> {
    let mut scan = Scan { text, at: 0 };
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    scan.expect(b'{', "a dictionary")?;
    loop {
        if scan.accept(b'}') {
            break;
        }
        let at = scan.peek_at();
        let twice = match scan.string()? {
            b"descr" => {
                scan.expect(b':', "a colon")?;
                let at = scan.peek_at();
                if scan.starts_with(b'[') || scan.starts_with(b'(') {
                    return Err((
                        at,
                        "a structured dtype, expected one of plain numbers or objects".to_string(),
                    ));
                }
                descr.replace((at, scan.string()?)).is_some()
            }
            b"fortran_order" => {
                scan.expect(b':', "a colon")?;
                fortran.replace(scan.boolean()?).is_some()
            }
            b"shape" => {
                scan.expect(b':', "a colon")?;
                shape.replace(scan.tuple()?).is_some()
            }
            _ => return Err((at, "a key other than descr, fortran_order and shape".to_string())),
        };
        if twice {
            return Err((at, "a key that stands twice".to_string()));
        }
        if !scan.accept(b',') {
            scan.expect(b'}', "a comma or the end of the dictionary")?;
            break;
        }
    }
    scan.space();
    if scan.at < text.len() {
        return Err((scan.at, "something follows the header's dictionary; the file is damaged".to_string()));
    }
    let (Some((at, descr)), Some(fortran), Some(shape)) = (descr, fortran, shape) else {
        return Err((
            0,
            "the header lacks one of descr, fortran_order and shape; the file is damaged".to_string(),
        ));
    };
    let (element, big_endian) = parse_descr(descr).ok_or_else(|| {
        let shown: String =
            descr.iter().take(40).flat_map(|&b| std::ascii::escape_default(b)).map(char::from).collect();
        (
            at,
            format!(
                "dtype '{shown}', expected bools, integers (i1 to i8, u1 to u8), floats (f4, f8) or objects; \
                 convert the array with astype"
            ),
        )
    })?;
    Ok(Header { element, big_endian, fortran, shape })
}

fn parse_descr(descr: &[u8]) -> Option<(Element, bool)> {
    let native = cfg!(target_endian = "big");
    let (big_endian, rest) = match descr {
        [b'<', rest @ ..] => (false, rest),
        [b'>', rest @ ..] => (true, rest),
        [b'=' | b'|', rest @ ..] => (native, rest),
        rest => (native, rest),
    };
    let element = match rest {
        b"b1" | b"?" => Element::Bool,
        [b'i', size @ (b'1' | b'2' | b'4' | b'8')] => Element::Signed(size - b'0'),
        [b'u', size @ (b'1' | b'2' | b'4' | b'8')] => Element::Unsigned(size - b'0'),
        [b'f', size @ (b'4' | b'8')] => Element::Float(size - b'0'),
        b"O" | b"O4" | b"O8" => Element::Object,
        _ => return None,
    };
    Some((element, big_endian))
}

/// A cursor over a header. Nothing nests, so nothing recurses.
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    fn space(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    /// Where the next token stands.
    fn peek_at(&mut self) -> usize {
        self.space();
        self.at
    }

    fn starts_with(&mut self, token: u8) -> bool {
        self.space();
        self.text.get(self.at) == Some(&token)
    }

    fn accept(&mut self, token: u8) -> bool {
        let there = self.starts_with(token);
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, token: u8, what: &str) -> Result<(), HeaderFault> {
        if self.accept(token) {
            return Ok(());
        }
        Err((
            self.at,
            format!("expected {what} ('{}') in the header; the file is damaged", char::from(token)),
        ))
    }

    /// A string without escapes, which no key and no dtype needs.
    fn string(&mut self) -> Result<&'a [u8], HeaderFault> {
        let at = self.peek_at();
        let fault =
            || (at, "expected a string without escapes in the header; the file is damaged".to_string());
        let quote = *self.text.get(at).filter(|&&b| b == b'\'' || b == b'"').ok_or_else(fault)?;
        let body = self.text.get(at + 1..).unwrap_or_default();
        let end = body.iter().position(|&b| b == quote).ok_or_else(fault)?;
        if body[..end].contains(&b'\\') {
            return Err(fault());
        }
        self.at = at + 1 + end + 1;
        Ok(&body[..end])
    }

    fn boolean(&mut self) -> Result<bool, HeaderFault> {
        let at = self.peek_at();
        let rest = self.text.get(at..).unwrap_or_default();
        for (word, value) in [(&b"True"[..], true), (&b"False"[..], false)] {
            if rest.starts_with(word) {
                self.at = at + word.len();
                return Ok(value);
            }
        }
        Err((at, "expected True or False in the header; the file is damaged".to_string()))
    }

    fn tuple(&mut self) -> Result<Vec<usize>, HeaderFault> {
        self.expect(b'(', "a shape")?;
        let mut dims = Vec::new();
        loop {
            if self.accept(b')') {
                break;
            }
            let at = self.peek_at();
            if dims.len() == MAX_DIMS {
                return Err((at, format!("more than {MAX_DIMS} dimensions")));
            }
            dims.push(self.dimension()?);
            if !self.accept(b',') {
                self.expect(b')', "a comma or the end of the shape")?;
                if dims.len() == 1 {
                    return Err((at, "a number in brackets, expected a shape like (5,)".to_string()));
                }
                break;
            }
        }
        Ok(dims)
    }

    fn dimension(&mut self) -> Result<usize, HeaderFault> {
        let at = self.peek_at();
        let mut value = Some(0usize);
        while let Some(digit) = self.text.get(self.at).filter(|b| b.is_ascii_digit()) {
            value = value.and_then(|value| value.checked_mul(10)?.checked_add(usize::from(digit - b'0')));
            self.at += 1;
        }
        if self.at == at {
            return Err((
                at,
                "expected a dimension, a number without a sign; the file is damaged".to_string(),
            ));
        }
        // Python 2 wrote its long integers so.
        if self.text.get(self.at) == Some(&b'L') {
            self.at += 1;
        }
        value.ok_or_else(|| (at, "a dimension above what this machine can address".to_string()))
    }
}

/// An array to write.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// Its name, which may hold slashes, as in `lstm/kernel`.
    pub name: &'a str,
    /// Dimensions.
    pub shape: &'a [usize],
    /// Values in C order, as many as the dimensions' product.
    pub values: &'a [f32],
}

/// Writes arrays as a `.npz` file that `np.load` reads: `.npy` version 1.0, `<f4`, deflated where `compress` is set
/// and stored otherwise. Equal arrays give equal bytes: no clock goes in. The file appears under its name only when
/// it is whole.
pub fn write_npz(path: &Path, arrays: &[Output<'_>], compress: bool) -> Result<()> {
    files::write_atomically(path, |out| write_npz_to(path, out, arrays, compress).map(drop))
}

/// The same into any writer, which is handed back; `path` is its name in messages.
pub fn write_npz_to<W: Write + Seek>(
    path: &Path,
    writer: W,
    arrays: &[Output<'_>],
    compress: bool,
) -> Result<W> {
    let failed = |error: ZipError| match error {
        ZipError::Io(source) => Error::io(path, "write")(source),
        error => Error::format(path, "", format!("cannot be written: {error}")),
    };
    let method = if compress { CompressionMethod::Deflated } else { CompressionMethod::Stored };
    let mut zip = ZipWriter::new(writer);
    for array in arrays {
        let elements = array.shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        if elements != Some(array.values.len()) || array.shape.len() > MAX_DIMS {
            return Err(Error::Shape {
                op: "write_npz",
                what: "values",
                expected: format!(
                    "as many as shape {:?} of {} has (at most {MAX_DIMS} dimensions)",
                    array.shape, array.name
                ),
                found: format!("{} values", array.values.len()),
            });
        }
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(method)
            .last_modified_time(zip::DateTime::default())
            .unix_permissions(0o644)
            .system(zip::System::Unix)
            .large_file(array.values.len() >= (1 << 29));
        zip.start_file(format!("{}.npy", array.name), options).map_err(failed)?;
        zip.write_all(&header_bytes("<f4", array.shape)).map_err(Error::io(path, "write"))?;
        // Piece by piece: a copy of a large embedding in little-endian bytes would double the memory.
        let mut piece = Vec::with_capacity(16 << 10);
        for values in array.values.chunks(4 << 10) {
            piece.clear();
            values.iter().for_each(|value| piece.extend_from_slice(&value.to_le_bytes()));
            zip.write_all(&piece).map_err(Error::io(path, "write"))?;
        }
    }
    zip.finish().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_written_as_numpy_writes_them() {
        let header = |shape: &[usize]| {
            let bytes = header_bytes("<f4", shape);
            assert_eq!(bytes.len() % 64, 0);
            assert_eq!(usize::from(u16::from_le_bytes([bytes[8], bytes[9]])), bytes.len() - 10);
            String::from_utf8(bytes[10..].to_vec()).unwrap().trim_end().to_string()
        };
        assert_eq!(header(&[]), "{'descr': '<f4', 'fortran_order': False, 'shape': (), }");
        assert_eq!(header(&[5]), "{'descr': '<f4', 'fortran_order': False, 'shape': (5,), }");
        assert_eq!(header(&[5, 60]), "{'descr': '<f4', 'fortran_order': False, 'shape': (5, 60), }");
    }

    #[test]
    fn headers_of_every_spelling_are_parsed() {
        let parsed = |text: &str| parse_header(text.as_bytes()).unwrap();
        let header = parsed("{'descr': '<i8', 'fortran_order': False, 'shape': (25000,), }   \n");
        assert_eq!(
            header,
            Header { element: Element::Signed(8), big_endian: false, fortran: false, shape: vec![25000] }
        );
        let header = parsed("{\"shape\":(2L,3L),\"fortran_order\":True,\"descr\":\">u2\"}");
        assert_eq!(
            header,
            Header { element: Element::Unsigned(2), big_endian: true, fortran: true, shape: vec![2, 3] }
        );
        assert!(parsed("{'descr': '|O', 'fortran_order': False, 'shape': ()}").shape.is_empty());
    }

    #[test]
    fn headers_that_do_not_fit_are_refused_with_their_place() {
        let refused = |text: &str, at: usize, what: &str| {
            let (found, message) = parse_header(text.as_bytes()).unwrap_err();
            assert!(message.contains(what), "{text}: {message}");
            assert_eq!(found, at, "{text}: {message}");
        };
        refused("", 0, "dictionary");
        refused("{}", 0, "lacks");
        refused("{'descr': '<i8', 'fortran_order': False, 'shape': (1,), 'more': 1}", 56, "a key other");
        refused("{'descr': '<i8', 'descr': '<i8'}", 17, "twice");
        refused("{'descr': [('a', '<i8')]}", 10, "structured");
        refused("{'descr': '<f2', 'fortran_order': False, 'shape': (1,)}", 10, "dtype '<f2'");
        refused("{'descr': '<\\x698'}", 10, "escapes");
        refused("{'descr': '<i8', 'fortran_order': 0}", 34, "True or False");
        refused("{'shape': (-1,)}", 11, "without a sign");
        refused("{'shape': (1)}", 11, "(5,)");
        refused("{'shape': ((((1,),),),)}", 11, "without a sign");
        refused("{'shape': (99999999999999999999,)}", 11, "address");
        refused("{'descr': '<i8', 'fortran_order': False, 'shape': (1,)} x", 56, "follows");
    }

    #[test]
    fn fortran_order_is_turned() {
        // [[1, 2, 3], [4, 5, 6]] column by column.
        assert_eq!(to_c_order(&[1, 4, 2, 5, 3, 6], &[2, 3]), [1, 2, 3, 4, 5, 6]);
        let shape = [2, 3, 4];
        let f_order: Vec<usize> = (0..24).map(|k| (k % 2) * 100 + (k / 2 % 3) * 10 + k / 6).collect();
        let c_order: Vec<usize> = (0..24).map(|k| (k / 12) * 100 + (k / 4 % 3) * 10 + k % 4).collect();
        assert_eq!(to_c_order(&f_order, &shape), c_order);
        assert!(to_c_order::<u8>(&[], &[0, usize::MAX, 7]).is_empty());
    }
}
