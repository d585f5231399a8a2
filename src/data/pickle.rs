//! Just enough of the pickle protocol to read lists of integers that NumPy pickled; nothing is ever executed.
//!
//! NumPy stores an object array as a pickle: a small program for a stack machine. [`read`] interprets the opcodes
//! that picklers of protocols 2 to 5 write for such arrays and refuses every other one; the callables it knows are
//! the seven in `Global`, each of which only fills in a record here.
//!
//! What an attacker could try, and what stands against it:
//! * lengths: a string is a range of the input, so that no length is ever an allocation;
//! * depth: values are indices into arenas, so that nothing recurses, neither reading nor dropping;
//! * the memo: slots are filled in order, one for each instruction that fills one;
//! * one long list named a million times: the integers handed out may not outnumber the pickle's bytes, and they are
//!   counted before the first row is handed out;
//! * `REDUCE` of a callable: only `Global`s exist, everything else is refused by its name.
//!
//! Memory is at most 64 times the pickle (a value takes 8 bytes; a flood of empty lists was measured at 40), time is
//! linear: tests/hostile_npz.rs holds both to it. The integers that a list is filled with in one go, which are nearly
//! all there are, are not unpacked until their row is handed out: until then they are a range of the input.

use super::Sequences;
use std::fmt;

/// Why a pickle was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Offset of the instruction in the pickle; none where the finished object, not an instruction, is at fault.
    pub byte: Option<usize>,
    /// What was found, what was expected, what to do.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.byte {
            Some(byte) => write!(f, "byte {byte} of the pickle: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// What to do about an array that is not lists of integers.
const SAVE_AS_LISTS: &str = "save the array as lists of integers: np.save(file, np.array([list(map(int, row)) for row in x], dtype=object))";

/// Takes the rows of a pickled array one by one, so that what is not needed of them is never stored.
pub trait RowSink {
    /// Comes before the first row: how many rows and integers (of all of them together) there are at most. Neither
    /// is more than the pickle has bytes.
    fn reserve(&mut self, rows: usize, integers: usize);

    /// The next row.
    fn row(&mut self, row: &[i64]);
}

impl RowSink for Sequences<i64> {
    fn reserve(&mut self, rows: usize, integers: usize) {
        self.reserve_exact(rows, integers);
    }

    fn row(&mut self, row: &[i64]) {
        self.push(row.iter().copied());
    }
}

/// Reads the pickle of a NumPy object array whose elements are rows of integers: lists, tuples or one-dimensional
/// integer arrays. `shape` is what the `.npy` header says: `[n]` for n rows, or `[n, m]`, which is how NumPy stores
/// rows that happen to be equally long.
pub fn read(bytes: &[u8], shape: &[usize]) -> Result<Sequences<i64>, Fault> {
    let mut rows = Sequences::new();
    read_rows(bytes, shape, &mut rows)?;
    Ok(rows)
}

/// The same, row by row; gives the number of rows. After an error some of them may have been handed out.
pub fn read_rows(bytes: &[u8], shape: &[usize], sink: &mut impl RowSink) -> Result<usize, Fault> {
    if u32::try_from(bytes.len()).is_err() {
        return Err(refuse(None, "the pickle is longer than 4 GiB, which is not read; split the array"));
    }
    let mut machine = Machine::new(bytes);
    let top = machine.run()?;
    machine.rows(top, shape, sink)
}

fn refuse(byte: impl Into<Option<usize>>, message: impl Into<String>) -> Fault {
    Fault { byte: byte.into(), message: message.into() }
}

/// The callables and types that a pickled array names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Global {
    Reconstruct,
    NdArray,
    DType,
    Scalar,
    FromBuffer,
    Encode,
    Bytes,
}

impl Global {
    fn named(module: &[u8], name: &[u8]) -> Option<Self> {
        Some(match (module, name) {
            (b"numpy.core.multiarray" | b"numpy._core.multiarray", b"_reconstruct") => Global::Reconstruct,
            (b"numpy.core.multiarray" | b"numpy._core.multiarray", b"scalar") => Global::Scalar,
            (b"numpy.core.numeric" | b"numpy._core.numeric", b"_frombuffer") => Global::FromBuffer,
            (b"numpy", b"ndarray") => Global::NdArray,
            (b"numpy", b"dtype") => Global::DType,
            (b"_codecs", b"encode") => Global::Encode,
            (b"__builtin__" | b"builtins", b"bytes") => Global::Bytes,
            _ => return None,
        })
    }
}

/// A value on the stack; what does not fit into 4 bytes is an index into one of the machine's arenas. Its 8 bytes
/// are what bounds the memory for a pickle of one-byte instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// A memo slot that was skipped.
    Hole,
    None,
    Bool(bool),
    Int(i32),
    /// An integer of more than 32 bits, in `wide`.
    Wide(u32),
    /// Text or bytes, in `spans`.
    Text(u32),
    /// The bytes that a text in `spans` stands for, one for each character up to U+00FF: protocol 2's detour.
    Latin1(u32),
    EmptyTuple,
    /// In `tuples`.
    Tuple(u32),
    /// In `heads`.
    List(u32),
    Global(Global),
    /// In `dtypes`.
    DType(u32),
    /// In `arrays`.
    Array(u32),
    /// Integers that a list was filled with in one go, in `runs`. Only lists hold it, never the stack.
    Run(u32),
}

const _: () = assert!(std::mem::size_of::<Value>() == 8);

impl Value {
    fn name(self) -> &'static str {
        match self {
            Value::Hole => "nothing",
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) | Value::Wide(_) | Value::Run(_) => "an integer",
            Value::Text(_) | Value::Latin1(_) => "a string",
            Value::EmptyTuple | Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Global(_) => "a function or class",
            Value::DType(_) => "a dtype",
            Value::Array(_) => "an array",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Object,
    Signed,
    Unsigned,
}

#[derive(Clone, Copy)]
struct DType {
    kind: Kind,
    size: u8,
    big_endian: bool,
}

/// An array as its state says: filled in by BUILD or `_frombuffer`.
#[derive(Clone, Copy)]
struct Array {
    shape: Value,
    dtype: u32,
    /// A list for objects, a string for numbers; [`Value::None`] until the array is built.
    data: Value,
}

/// BININT1, BININT2 and BININT instructions without anything between them.
#[derive(Clone, Copy)]
struct Run {
    /// Where the first starts in the input.
    start: u32,
    /// How many they are.
    len: u32,
}

/// Bytes of an instruction that a [`Run`] may hold; 0 for every other one.
const RUN_BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    (bytes[b'K' as usize], bytes[b'M' as usize], bytes[b'J' as usize]) = (2, 3, 5);
    bytes
};

/// The instructions of a [`Run`] and what follows it, integer by integer.
struct RunValues<'a> {
    input: &'a [u8],
    left: u32,
}

impl Iterator for RunValues<'_> {
    type Item = i32;

    fn next(&mut self) -> Option<i32> {
        self.left = self.left.checked_sub(1)?;
        // Without a branch on the instruction, which nothing could predict: five bytes are there but for the last
        // integers of a damaged file.
        if let Some(&[op, a, b, c, d]) = self.input.first_chunk() {
            let bytes = usize::from(RUN_BYTES[usize::from(op)]);
            self.input = self.input.get(bytes..)?;
            let unused = 8 * (5 - bytes as u32);
            return Some((u32::from_le_bytes([a, b, c, d]) << unused >> unused) as i32);
        }
        let bytes = usize::from(RUN_BYTES[usize::from(*self.input.first()?)]);
        let (taken, rest) = self.input.split_at_checked(bytes)?;
        self.input = rest;
        let digits = taken.get(1..)?;
        Some(digits.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte)) as i32)
    }
}

/// A list that nothing was appended to has no items of its own; see [`Machine::items_of`].
const NO_ITEMS: u32 = u32::MAX;

struct Machine<'a> {
    input: &'a [u8],
    /// The next byte.
    at: usize,
    /// The instruction being executed, for messages.
    op_at: usize,
    stack: Vec<Value>,
    /// Stack heights at the open MARKs.
    marks: Vec<u32>,
    memo: Vec<Value>,
    wide: Vec<i64>,
    /// Start and length in `input`.
    spans: Vec<(u32, u32)>,
    /// Start and length in `tuple_items`.
    tuples: Vec<(u32, u32)>,
    tuple_items: Vec<Value>,
    /// For each list its index in `items`, or `NO_ITEMS`: a list costs 4 bytes until something is in it.
    heads: Vec<u32>,
    items: Vec<Vec<Value>>,
    runs: Vec<Run>,
    dtypes: Vec<DType>,
    arrays: Vec<Array>,
}

/// An index into an arena. Arenas hold at most one entry for each input byte, and the input is below 4 GiB.
fn index(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl<'a> Machine<'a> {
    fn new(input: &'a [u8]) -> Self {
        Self {
            input,
            at: 0,
            op_at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            wide: Vec::new(),
            spans: Vec::new(),
            tuples: Vec::new(),
            tuple_items: Vec::new(),
            heads: Vec::new(),
            items: Vec::new(),
            runs: Vec::new(),
            dtypes: Vec::new(),
            arrays: Vec::new(),
        }
    }

    fn fault(&self, message: impl Into<String>) -> Fault {
        refuse(self.op_at, message)
    }

    /// The next `n` bytes of the input.
    fn take(&mut self, n: u64) -> Result<&'a [u8], Fault> {
        let left = self.input.get(self.at..).unwrap_or_default();
        match usize::try_from(n).ok().and_then(|n| left.get(..n)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(self.fault(format!(
                "the instruction needs {n} bytes, but {} are left; the file is cut off or damaged",
                left.len()
            ))),
        }
    }

    /// The next `n` (at most 8) bytes as a little-endian number.
    fn number(&mut self, n: u64) -> Result<u64, Fault> {
        Ok(self.take(n)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// The input up to the next newline, which is consumed.
    fn line(&mut self) -> Result<&'a [u8], Fault> {
        let left = self.input.get(self.at..).unwrap_or_default();
        // Module and attribute names are short: a limit keeps a pickle of unfinished names linear.
        match left.iter().take(256).position(|&byte| byte == b'\n') {
            Some(end) => {
                self.at += end + 1;
                Ok(&left[..end])
            }
            None => Err(self.fault("a name of more than 255 bytes or without an end")),
        }
    }

    /// The values above the innermost MARK may be popped, no others.
    fn floor(&self) -> usize {
        self.marks.last().map_or(0, |&mark| mark as usize)
    }

    fn pop(&mut self) -> Result<Value, Fault> {
        if self.stack.len() > self.floor()
            && let Some(value) = self.stack.pop()
        {
            return Ok(value);
        }
        Err(self.fault("the instruction needs a value, but the stack is empty; the file is damaged"))
    }

    fn top(&self) -> Result<Value, Fault> {
        match self.stack.last() {
            Some(&value) if self.stack.len() > self.floor() => Ok(value),
            _ => {
                Err(self.fault("the instruction needs a value, but the stack is empty; the file is damaged"))
            }
        }
    }

    /// Where the values above the innermost MARK start; the mark is taken away.
    fn mark(&mut self) -> Result<usize, Fault> {
        match self.marks.pop() {
            Some(mark) => Ok(mark as usize),
            None => Err(self.fault("the instruction needs a MARK, but there is none; the file is damaged")),
        }
    }

    fn integer(&mut self, value: i64) {
        let value = match i32::try_from(value) {
            Ok(value) => Value::Int(value),
            Err(_) => {
                self.wide.push(value);
                Value::Wide(index(self.wide.len() - 1))
            }
        };
        self.stack.push(value);
    }

    fn text(&mut self, len: u64) -> Result<(), Fault> {
        let start = self.at;
        self.take(len)?;
        self.spans.push((index(start), index(self.at - start)));
        self.stack.push(Value::Text(index(self.spans.len() - 1)));
        Ok(())
    }

    fn remember(&mut self, slot: u64) -> Result<(), Fault> {
        let value = self.top()?;
        let known = self.memo.len() as u64;
        if slot < known {
            self.memo[slot as usize] = value;
        } else if slot <= known + 1 {
            // Picklers number their slots from 0 (Python 3) or from 1 (Python 2), so one may be skipped.
            if slot > known {
                self.memo.push(Value::Hole);
            }
            self.memo.push(value);
        } else {
            return Err(self.fault(format!(
                "memo slot {slot} after slot {known}: slots must be filled in order; the file is damaged"
            )));
        }
        Ok(())
    }

    fn recall(&mut self, slot: u64) -> Result<(), Fault> {
        match usize::try_from(slot).ok().and_then(|slot| self.memo.get(slot)) {
            Some(&value) if value != Value::Hole => {
                self.stack.push(value);
                Ok(())
            }
            _ => Err(self.fault(format!("memo slot {slot} holds nothing; the file is damaged"))),
        }
    }

    /// Makes a tuple of the values from `start` on.
    fn tuple(&mut self, start: usize) {
        if start == self.stack.len() {
            self.stack.push(Value::EmptyTuple);
            return;
        }
        let span = (index(self.tuple_items.len()), index(self.stack.len() - start));
        self.tuple_items.extend(self.stack.drain(start..));
        self.tuples.push(span);
        self.stack.push(Value::Tuple(index(self.tuples.len() - 1)));
    }

    fn tuple_of_last(&mut self, n: usize) -> Result<(), Fault> {
        match self.stack.len().checked_sub(n) {
            Some(start) if start >= self.floor() => {
                self.tuple(start);
                Ok(())
            }
            _ => Err(self.fault(format!("a tuple of {n} needs {n} values; the file is damaged"))),
        }
    }

    /// Moves the values from `start` on to the end of the list just below them.
    fn append(&mut self, start: usize) -> Result<(), Fault> {
        let below = start.checked_sub(1).filter(|&below| below >= self.floor());
        let Some(&Value::List(list)) = below.and_then(|below| self.stack.get(below)) else {
            return Err(self.fault("there is no list to append to; the file is damaged"));
        };
        if start < self.stack.len()
            && let Some(items) = own_items(&mut self.heads, &mut self.items, list)
        {
            items.extend(self.stack.drain(start..));
        }
        Ok(())
    }

    /// After a MARK: if what follows are integers alone and the APPENDS that puts them into the list on the stack,
    /// executes all of it. If not, nothing has happened.
    fn append_run(&mut self) -> bool {
        let Some(&Value::List(list)) = self.stack.get(self.floor()..).and_then(<[Value]>::last) else {
            return false;
        };
        let (mut at, mut len) = (self.at, 0u32);
        let end = loop {
            let Some(&op) = self.input.get(at) else { return false };
            match RUN_BYTES[usize::from(op)] {
                0 => break op,
                bytes => at += usize::from(bytes),
            }
            len += 1;
        };
        if end != b'e' || len == 0 {
            return false;
        }
        let run = Value::Run(index(self.runs.len()));
        self.runs.push(Run { start: index(self.at), len });
        if let Some(items) = own_items(&mut self.heads, &mut self.items, list) {
            items.push(run);
        }
        self.at = at + 1;
        true
    }

    fn global(&mut self, module: &[u8], name: &[u8]) -> Result<(), Fault> {
        match Global::named(module, name) {
            Some(global) => {
                self.stack.push(Value::Global(global));
                Ok(())
            }
            None => Err(self.fault(format!(
                "the pickle calls for {}.{}, which is not part of an array of integer lists and is never \
                 executed; {SAVE_AS_LISTS}",
                printable(module),
                printable(name)
            ))),
        }
    }

    fn bytes_of(&self, value: Value) -> Option<&'a [u8]> {
        let Value::Text(text) = value else { return None };
        let &(start, len) = self.spans.get(text as usize)?;
        self.input.get(start as usize..)?.get(..len as usize)
    }

    fn run_values(&self, run: u32) -> RunValues<'a> {
        let Some(&Run { start, len }) = self.runs.get(run as usize) else {
            return RunValues { input: &[], left: 0 };
        };
        RunValues { input: self.input.get(start as usize..).unwrap_or_default(), left: len }
    }

    /// The items of a tuple or a list, one by one.
    fn values_of(&self, value: Value) -> Option<impl Iterator<Item = Value>> {
        Some(self.items_of(value)?.iter().flat_map(|&item| {
            let (one, run) = match item {
                Value::Run(run) => (None, Some(self.run_values(run))),
                item => (Some(item), None),
            };
            one.into_iter().chain(run.into_iter().flatten().map(Value::Int))
        }))
    }

    /// The first items of a tuple or a list, and holes where there are fewer.
    fn first_of<const N: usize>(&self, value: Value) -> Option<[Value; N]> {
        let mut first = [Value::Hole; N];
        first.iter_mut().zip(self.values_of(value)?).for_each(|(slot, item)| *slot = item);
        Some(first)
    }

    /// How many items a tuple or a list has. It takes a step for each [`Run`], each of which holds something.
    fn len_of(&self, value: Value) -> Option<usize> {
        let len = |&item: &Value| match item {
            Value::Run(run) => self.runs.get(run as usize).map_or(0, |run| run.len as usize),
            _ => 1,
        };
        match value {
            Value::List(_) => Some(self.items_of(value)?.iter().map(len).sum()),
            _ => self.items_of(value).map(<[Value]>::len),
        }
    }

    /// The items of a tuple or a list, where a run of integers in a list counts as one.
    fn items_of(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::EmptyTuple => Some(&[]),
            Value::Tuple(tuple) => {
                let &(start, len) = self.tuples.get(tuple as usize)?;
                self.tuple_items.get(start as usize..)?.get(..len as usize)
            }
            Value::List(list) => match *self.heads.get(list as usize)? {
                NO_ITEMS => Some(&[]),
                items => self.items.get(items as usize).map(Vec::as_slice),
            },
            _ => None,
        }
    }

    fn as_integer(&self, value: Value) -> Option<i64> {
        match value {
            Value::Int(value) => Some(i64::from(value)),
            Value::Wide(wide) => self.wide.get(wide as usize).copied(),
            _ => None,
        }
    }

    /// Interprets the whole pickle and gives the object it describes.
    fn run(&mut self) -> Result<Value, Fault> {
        loop {
            self.op_at = self.at;
            let Some(&op) = self.input.get(self.at) else {
                return Err(self.fault("the pickle ends without STOP; the file is cut off"));
            };
            self.at += 1;
            match op {
                // The four opcodes of which a review consists come first.
                b'K' => {
                    let value = self.number(1)?;
                    self.stack.push(Value::Int(value as i32));
                }
                b'M' => {
                    let value = self.number(2)?;
                    self.stack.push(Value::Int(value as i32));
                }
                b'J' => {
                    let value = self.number(4)?;
                    self.stack.push(Value::Int(value as u32 as i32));
                }
                b'h' => {
                    let slot = self.number(1)?;
                    self.recall(slot)?;
                }
                b'j' => {
                    let slot = self.number(4)?;
                    self.recall(slot)?;
                }
                b'q' => {
                    let slot = self.number(1)?;
                    self.remember(slot)?;
                }
                b'r' => {
                    let slot = self.number(4)?;
                    self.remember(slot)?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'(' => {
                    if !self.append_run() {
                        self.marks.push(index(self.stack.len()));
                    }
                }
                b']' => {
                    self.heads.push(NO_ITEMS);
                    self.stack.push(Value::List(index(self.heads.len() - 1)));
                }
                b'a' => {
                    let last = self.stack.len().saturating_sub(1);
                    self.append(last)?;
                }
                b'e' => {
                    let start = self.mark()?;
                    self.append(start)?;
                }
                b'l' => {
                    let start = self.mark()?;
                    self.heads.push(NO_ITEMS);
                    let list = Value::List(index(self.heads.len() - 1));
                    self.stack.insert(start, list);
                    self.append(start + 1)?;
                }
                b')' => self.stack.push(Value::EmptyTuple),
                b't' => {
                    let start = self.mark()?;
                    self.tuple(start);
                }
                0x85 => self.tuple_of_last(1)?,
                0x86 => self.tuple_of_last(2)?,
                0x87 => self.tuple_of_last(3)?,
                b'N' => self.stack.push(Value::None),
                0x88 => self.stack.push(Value::Bool(true)),
                0x89 => self.stack.push(Value::Bool(false)),
                0x8a => {
                    let len = self.number(1)?;
                    self.long(len)?;
                }
                0x8b => {
                    let len = self.number(4)?;
                    self.long(len)?;
                }
                b'U' | b'C' | 0x8c => {
                    let len = self.number(1)?;
                    self.text(len)?;
                }
                b'T' | b'X' | b'B' => {
                    let len = self.number(4)?;
                    self.text(len)?;
                }
                0x8d | 0x8e | 0x96 => {
                    let len = self.number(8)?;
                    self.text(len)?;
                }
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (self.bytes_of(module), self.bytes_of(name)) {
                        (Some(module), Some(name)) => self.global(module, name)?,
                        _ => return Err(self.fault("STACK_GLOBAL needs two strings; the file is damaged")),
                    }
                }
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                0x80 => {
                    let protocol = self.number(1)?;
                    if !(2..=5).contains(&protocol) {
                        return Err(self
                            .fault(format!("pickle protocol {protocol}, expected 2 to 5; {SAVE_AS_LISTS}")));
                    }
                }
                0x95 => {
                    let len = self.number(8)?;
                    let left = (self.input.len() - self.at) as u64;
                    if len > left {
                        return Err(self.fault(format!(
                            "a frame of {len} bytes, but {left} are left; the file is cut off or damaged"
                        )));
                    }
                }
                b'.' => {
                    let top = self.pop()?;
                    if !self.stack.is_empty() || !self.marks.is_empty() {
                        return Err(self.fault("STOP with values left on the stack; the file is damaged"));
                    }
                    if self.at != self.input.len() {
                        return Err(self.fault(format!(
                            "{} bytes follow the end of the pickle; the file is damaged",
                            self.input.len() - self.at
                        )));
                    }
                    return Ok(top);
                }
                _ => return Err(self.unknown(op)),
            }
        }
    }

    fn unknown(&self, op: u8) -> Fault {
        // Named are the opcodes that other objects are pickled with.
        let name = match op {
            b'i' => "INST, an object of a class",
            b'o' => "OBJ, an object of a class",
            0x81 => "NEWOBJ, an object of a class",
            0x92 => "NEWOBJ_EX, an object of a class",
            0x82..=0x84 => "EXT, a registered object",
            b'P' | b'Q' => "PERSID, a reference out of the file",
            0x97 | 0x98 => "a buffer out of the file",
            b'}' | b'd' | b's' | b'u' => "a dictionary",
            0x8f..=0x91 => "a set",
            b'F' | b'G' => "a float",
            b'I' | b'L' | b'S' | b'V' | b'g' | b'p' => "text of protocol 0",
            _ => "an unknown instruction",
        };
        self.fault(format!(
            "opcode 0x{op:02x} ({name}) has no place in an array of integer lists; {SAVE_AS_LISTS}"
        ))
    }

    /// LONG1 and LONG4: little-endian two's complement of any length.
    fn long(&mut self, len: u64) -> Result<(), Fault> {
        let digits = self.take(len)?;
        match decode(digits, true, false) {
            Some(value) => self.integer(value),
            None => return Err(self.fault(format!("an integer of {len} bytes; more than 8 are not read"))),
        }
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), Fault> {
        let (args, callable) = (self.pop()?, self.pop()?);
        let Value::Global(global) = callable else {
            return Err(self.fault(format!("REDUCE calls {}; the file is damaged", callable.name())));
        };
        let args = match self.first_of(args) {
            Some([a, b, c, d, Value::Hole]) => [a, b, c, d],
            _ => return Err(self.fault("REDUCE needs a tuple of at most 4 arguments; the file is damaged")),
        };
        let made = match (global, args) {
            (Global::Reconstruct, [Value::Global(Global::NdArray), _, _, Value::Hole]) => {
                self.arrays.push(Array { shape: Value::EmptyTuple, dtype: 0, data: Value::None });
                Value::Array(index(self.arrays.len() - 1))
            }
            (Global::DType, [Value::Text(_), _, _, Value::Hole]) => {
                let name = self.bytes_of(args[0]).unwrap_or_default();
                let dtype = self.dtype(name)?;
                self.dtypes.push(dtype);
                Value::DType(index(self.dtypes.len() - 1))
            }
            (Global::Encode, [Value::Text(text), codec, Value::Hole, _])
                if matches!(self.bytes_of(codec), Some(b"latin1" | b"latin-1")) =>
            {
                Value::Latin1(text)
            }
            (Global::Bytes, [Value::Hole, ..]) => {
                self.spans.push((0, 0));
                Value::Text(index(self.spans.len() - 1))
            }
            (Global::FromBuffer, [data @ Value::Text(_), Value::DType(dtype), shape, Value::Text(_)]) => {
                self.arrays.push(Array { shape, dtype, data });
                Value::Array(index(self.arrays.len() - 1))
            }
            (Global::Scalar, [Value::DType(dtype), data, Value::Hole, _]) => {
                let Some(number) = self.scalar(dtype, data) else {
                    return Err(self.fault(format!(
                        "a NumPy scalar that is not an integer of 1 to 8 bytes; {SAVE_AS_LISTS}"
                    )));
                };
                // The number stands where its pickle stood, so that a row of scalars is a row of integers.
                self.integer(number);
                return Ok(());
            }
            _ => {
                return Err(self.fault(format!(
                    "{global:?} is called with arguments that NumPy does not give it; the file is damaged"
                )));
            }
        };
        self.stack.push(made);
        Ok(())
    }

    fn dtype(&self, name: &[u8]) -> Result<DType, Fault> {
        let (kind, size) = match name {
            b"O8" | b"O4" | b"O" => (Kind::Object, 8),
            [b'i', size @ (b'1' | b'2' | b'4' | b'8')] => (Kind::Signed, size - b'0'),
            [b'u', size @ (b'1' | b'2' | b'4' | b'8')] => (Kind::Unsigned, size - b'0'),
            _ => {
                return Err(self.fault(format!(
                    "an array of dtype {}, expected integers (i1 to i8, u1 to u8) or objects; {SAVE_AS_LISTS}",
                    printable(name)
                )));
            }
        };
        Ok(DType { kind, size, big_endian: cfg!(target_endian = "big") })
    }

    fn build(&mut self) -> Result<(), Fault> {
        let (state, target) = (self.pop()?, self.top()?);
        match (target, self.first_of(state).unwrap_or([Value::Hole; 6])) {
            (Value::DType(dtype), [_, order @ Value::Text(_), ..]) => {
                let big_endian = match self.bytes_of(order) {
                    Some(b"<") => false,
                    Some(b">") => true,
                    // Native order, or none because it does not matter.
                    Some(b"=" | b"|") => cfg!(target_endian = "big"),
                    _ => return Err(self.fault("a dtype of unknown byte order; the file is damaged")),
                };
                if let Some(dtype) = self.dtypes.get_mut(dtype as usize) {
                    dtype.big_endian = big_endian;
                }
                Ok(())
            }
            // Version, shape, dtype, Fortran order, data. The order plays no part for one dimension, and objects
            // are pickled in C order always.
            (Value::Array(array), [_, shape, Value::DType(dtype), _, data, Value::Hole])
                if data != Value::Hole =>
            {
                if let Some(array) = self.arrays.get_mut(array as usize) {
                    *array = Array { shape, dtype, data };
                }
                Ok(())
            }
            _ => Err(self.fault(format!(
                "BUILD of {} with a state of {} items, which NumPy does not write; the file is damaged",
                target.name(),
                self.len_of(state).unwrap_or_default()
            ))),
        }
    }

    /// The integer that a NumPy scalar holds.
    fn scalar(&self, dtype: u32, data: Value) -> Option<i64> {
        let mut number = Vec::new();
        self.numbers(*self.dtypes.get(dtype as usize)?, 1, data, &mut number)?;
        number.pop()
    }

    /// Appends the `n` numbers that `data` holds to `to`.
    fn numbers(&self, dtype: DType, n: usize, data: Value, to: &mut Vec<i64>) -> Option<()> {
        let size = usize::from(dtype.size);
        let wanted = n.checked_mul(size)?;
        let signed = match dtype.kind {
            Kind::Signed => true,
            Kind::Unsigned => false,
            Kind::Object => return None,
        };
        match data {
            Value::Latin1(text) => {
                let text = std::str::from_utf8(self.bytes_of(Value::Text(text))?).ok()?;
                let mut left = wanted;
                let mut number = [0u8; 8];
                for (at, c) in text.chars().enumerate() {
                    left = left.checked_sub(1)?;
                    number[at % size] = u8::try_from(u32::from(c)).ok()?;
                    if at % size == size - 1 {
                        to.push(decode(&number[..size], signed, dtype.big_endian)?);
                    }
                }
                (left == 0).then_some(())
            }
            _ => {
                let bytes = self.bytes_of(data)?;
                if bytes.len() != wanted {
                    return None;
                }
                for number in bytes.chunks_exact(size) {
                    to.push(decode(number, signed, dtype.big_endian)?);
                }
                Some(())
            }
        }
    }

    /// The dimensions of an array.
    fn shape_of(&self, array: &Array) -> Option<Vec<usize>> {
        let mut dims = Vec::new();
        for dim in self.values_of(array.shape)? {
            if dims.len() == 32 {
                return None;
            }
            dims.push(usize::try_from(self.as_integer(dim)?).ok()?);
        }
        Some(dims)
    }

    fn array_of(&self, value: Value) -> Option<(&Array, DType)> {
        let Value::Array(array) = value else { return None };
        let array = self.arrays.get(array as usize)?;
        Some((array, *self.dtypes.get(array.dtype as usize)?))
    }

    /// Hands out the rows of the finished object and gives their number.
    fn rows(&self, top: Value, shape: &[usize], sink: &mut impl RowSink) -> Result<usize, Fault> {
        let Some((array, DType { kind: Kind::Object, .. })) = self.array_of(top) else {
            return Err(refuse(
                None,
                format!("the pickle holds {}, expected an object array; {SAVE_AS_LISTS}", top.name()),
            ));
        };
        let pickled = self.shape_of(array).unwrap_or_default();
        if pickled != shape {
            return Err(refuse(
                None,
                format!(
                    "the pickled array has shape {pickled:?}, its header says {shape:?}; the file is damaged"
                ),
            ));
        }
        let (Value::List(_), Some(len)) = (array.data, self.len_of(array.data)) else {
            return Err(refuse(
                None,
                format!("the array's data is {}, expected a list; the file is damaged", array.data.name()),
            ));
        };
        let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        if Some(len) != elements {
            return Err(refuse(
                None,
                format!("the array of shape {shape:?} has {len} elements; the file is damaged"),
            ));
        }
        match *shape {
            [_] => self.ragged(array.data, len, sink)?,
            // Rows of equal length, which NumPy turned into a matrix of objects.
            [n, width] if width > 0 => {
                sink.reserve(n, len);
                let mut values = self.values_of(array.data).into_iter().flatten();
                let mut numbers = Vec::with_capacity(width.min(len));
                for row in 0..n {
                    numbers.clear();
                    for (at, item) in values.by_ref().take(width).enumerate() {
                        numbers.push(self.integer_of(row, at, item)?);
                    }
                    sink.row(&numbers);
                }
            }
            _ => {
                return Err(refuse(
                    None,
                    format!("an object array of shape {shape:?}, expected one of rows; {SAVE_AS_LISTS}"),
                ));
            }
        }
        Ok(shape[0])
    }

    /// Rows of their own length each: the items of the list `data`.
    fn ragged(&self, data: Value, rows: usize, sink: &mut impl RowSink) -> Result<(), Fault> {
        // Counted before anything is handed out: rows may be one and the same list, named again and again.
        let mut total = 0usize;
        for (row, item) in self.values_of(data).into_iter().flatten().enumerate() {
            let len = self.row_len(item).ok_or_else(|| {
                refuse(
                    None,
                    format!(
                        "row {row} is {}, expected a list, a tuple or a one-dimensional array of integers; \
                         {SAVE_AS_LISTS}",
                        item.name()
                    ),
                )
            })?;
            total = total.checked_add(len).filter(|&total| total <= self.input.len()).ok_or_else(|| {
                refuse(
                    None,
                    format!(
                        "the rows hold more integers than the pickle has bytes, because many rows are the same \
                         list; {SAVE_AS_LISTS}"
                    ),
                )
            })?;
        }
        sink.reserve(rows, total);
        let mut numbers = Vec::new();
        for (row, item) in self.values_of(data).into_iter().flatten().enumerate() {
            numbers.clear();
            match self.array_of(item) {
                Some((array, dtype)) if dtype.kind != Kind::Object => {
                    let len = self.row_len(item).unwrap_or_default();
                    self.numbers(dtype, len, array.data, &mut numbers).ok_or_else(|| {
                        refuse(
                            None,
                            format!(
                                "row {row} is an array whose data does not hold its {len} integers (or one is \
                                 above 2^63 - 1); the file is damaged"
                            ),
                        )
                    })?;
                }
                Some((array, _)) => self.push_row(row, array.data, &mut numbers)?,
                None => self.push_row(row, item, &mut numbers)?,
            }
            sink.row(&numbers);
        }
        Ok(())
    }

    /// How many integers a row claims to hold; none if it cannot be a row.
    fn row_len(&self, item: Value) -> Option<usize> {
        match self.array_of(item) {
            Some((array, dtype)) => {
                let [len] = self.shape_of(array)?[..] else { return None };
                match dtype.kind {
                    Kind::Object => self.len_of(array.data).filter(|&items| items == len),
                    _ => Some(len),
                }
            }
            None => self.len_of(item),
        }
    }

    fn push_row(&self, row: usize, items: Value, to: &mut Vec<i64>) -> Result<(), Fault> {
        for &item in self.items_of(items).unwrap_or_default() {
            match item {
                Value::Run(run) => to.extend(self.run_values(run).map(i64::from)),
                item => to.push(self.integer_of(row, to.len(), item)?),
            }
        }
        Ok(())
    }

    /// An item of a row.
    fn integer_of(&self, row: usize, at: usize, item: Value) -> Result<i64, Fault> {
        self.as_integer(item).ok_or_else(|| {
            refuse(
                None,
                format!("row {row}, item {at} is {}, expected an integer; {SAVE_AS_LISTS}", item.name()),
            )
        })
    }
}

/// The list's own items, which it has from the first append on.
fn own_items<'a>(heads: &mut [u32], items: &'a mut Vec<Vec<Value>>, list: u32) -> Option<&'a mut Vec<Value>> {
    let head = heads.get_mut(list as usize)?;
    if *head == NO_ITEMS {
        *head = index(items.len());
        items.push(Vec::new());
    }
    items.get_mut(*head as usize)
}

/// An integer of up to 8 bytes; none if there are more or the value is above `i64::MAX`.
fn decode(bytes: &[u8], signed: bool, big_endian: bool) -> Option<i64> {
    if bytes.len() > 8 {
        return None;
    }
    let join = |number: u64, &byte: &u8| number << 8 | u64::from(byte);
    let number = if big_endian { bytes.iter().fold(0, join) } else { bytes.iter().rev().fold(0, join) };
    if signed {
        let unused = 64 - 8 * bytes.len() as u32;
        // No bytes stand for 0, and a shift by 64 would overflow.
        Some(if unused == 64 { 0 } else { (number << unused) as i64 >> unused })
    } else {
        i64::try_from(number).ok()
    }
}

/// Untrusted bytes for a message: short, and nothing that a terminal would act on.
fn printable(bytes: &[u8]) -> String {
    let mut text: String =
        bytes.iter().take(60).flat_map(|&byte| std::ascii::escape_default(byte)).map(char::from).collect();
    if bytes.len() > 60 {
        text.push('…');
    }
    text
}
