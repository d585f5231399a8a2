//! What the parser makes of a module (statements, still by name) and what the executor runs (instructions over register rows).

use super::alu::{Cvt, F1, F2, F3, P2};
use crate::counters::Class;

/// A scalar type of PTX. `.bN` types are held as `UN`: the bits are the same, and no operation tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Ty {
    Pred,
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    BF16,
    F32,
    F64,
}

impl Ty {
    /// The type a suffix names.
    pub fn parse(s: &str) -> Option<Ty> {
        Some(match s {
            "pred" => Ty::Pred,
            "u8" | "b8" => Ty::U8,
            "s8" => Ty::S8,
            "u16" | "b16" => Ty::U16,
            "s16" => Ty::S16,
            "u32" | "b32" => Ty::U32,
            "s32" => Ty::S32,
            "u64" | "b64" => Ty::U64,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "bf16" => Ty::BF16,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            _ => return None,
        })
    }

    /// Its size in bytes; a predicate has none and counts as 1.
    pub fn bytes(self) -> u64 {
        match self {
            Ty::Pred | Ty::U8 | Ty::S8 => 1,
            Ty::U16 | Ty::S16 | Ty::F16 | Ty::BF16 => 2,
            Ty::U32 | Ty::S32 | Ty::F32 => 4,
            Ty::U64 | Ty::S64 | Ty::F64 => 8,
        }
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, Ty::F16 | Ty::BF16 | Ty::F32 | Ty::F64)
    }

    /// Whether it is a signed integer.
    pub fn is_signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }
}

/// An operand as written.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// A register, symbol or label, by its name.
    Name(String),
    /// `name+offset`, the address of a variable.
    Sum(String, i64),
    /// `!name`.
    Not(String),
    /// An integer.
    Int(i128),
    /// A float given by its bits: 32 of them (`0f`) or 64 (`0d`).
    Float(u64, bool),
    /// `[base+offset]`; no base is an absolute address.
    Addr(Option<String>, i64),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `a|b`.
    Pair(String, String),
}

/// A variable: a parameter, or memory of a module, kernel or function.
#[derive(Debug, Clone)]
pub struct Var {
    /// Its name.
    pub name: String,
    /// Its state space: `global`, `const`, `shared`, `local`, `param`.
    pub space: String,
    /// Alignment in bytes.
    pub align: u64,
    /// Size in bytes; 0 for an `extern` array of no given size.
    pub size: u64,
    /// Initial bytes; memory that CUDA defines as zero where the module gives none.
    pub init: Vec<u8>,
    /// The line of its declaration.
    pub line: u32,
}

/// One statement of a body.
#[derive(Debug, Clone)]
pub enum Stmt {
    /// `name:`
    Label(String),
    /// Registers: a name, and how many (`%r<5>`) or one.
    Reg(Ty, String, Option<u32>),
    /// A variable.
    Var(Var),
    /// `{`
    Open,
    /// `}`
    Close,
    /// An instruction: guard (register, negated), opcode cut at its dots, operands.
    Instr(Option<(String, bool)>, Vec<String>, Vec<Operand>),
    /// `call (returns), name, (arguments)`.
    Call(Option<(String, bool)>, Vec<String>, String, Vec<String>),
}

/// An entry or a function.
#[derive(Debug, Clone)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Whether it can be launched.
    pub entry: bool,
    /// Return parameters (functions only).
    pub returns: Vec<Var>,
    /// Parameters in order.
    pub params: Vec<Var>,
    /// Statements with their lines.
    pub body: Vec<(u32, Stmt)>,
    /// The line of its name.
    pub line: u32,
}

/// A parsed module.
#[derive(Debug, Default)]
pub struct Ast {
    /// Module-scope variables.
    pub vars: Vec<Var>,
    /// Entries and functions.
    pub functions: Vec<Function>,
}

/// Index of a register row of a warp.
pub type Slot = u32;

/// A state space an access names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Space {
    Global,
    Const,
    Shared,
    Local,
    Generic,
}

/// How lanes' predicates are combined with the result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Comb {
    None,
    And,
    Or,
    Xor,
}

/// An atomic operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AtomOp {
    Add,
    Min,
    Max,
    Inc,
    Dec,
    And,
    Or,
    Xor,
    Exch,
    Cas,
}

/// A shuffle's mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// A vote's mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

/// A predicate operand: its index and whether it is negated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PredRef {
    /// Index of the predicate.
    pub at: Slot,
    /// `!p`.
    pub not: bool,
}

/// How an access orders others. Only [`strong`](Order::strong) matters outside cooperative launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Order {
    /// A load or store that is relaxed or volatile.
    pub strong: bool,
    /// It is strong towards other blocks: not weak, and not of block scope.
    pub device: bool,
    /// It is an acquire, not of block scope.
    pub acquire: bool,
    /// It is a release, not of block scope.
    pub release: bool,
}

/// What an instruction does. Operands are register rows; immediates, parameters and special registers are rows as well.
/// A `Fence` has more than block scope.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Op {
    Nop,
    Mov { d: Slot, a: Slot },
    Un { f: F1, d: Slot, a: Slot },
    Bin { f: F2, d: Slot, a: Slot, b: Slot },
    Tri { f: F3, d: Slot, a: Slot, b: Slot, c: Slot },
    Cvt { c: Cvt, d: Slot, a: Slot },
    Setp { f: P2, d: Slot, q: Option<Slot>, a: Slot, b: Slot, comb: Comb, c: PredRef },
    Selp { d: Slot, a: Slot, b: Slot, p: PredRef },
    PMov { d: Slot, a: PredRef },
    PBin { f: Comb, d: Slot, a: PredRef, b: PredRef },
    PConst { d: Slot, value: bool },
    Pack { d: Slot, parts: Box<[Slot]>, bits: u32 },
    Unpack { parts: Box<[Option<Slot>]>, a: Slot, bits: u32 },
    Ld { space: Space, ty: Ty, width: u32, d: Box<[Option<Slot>]>, a: Slot, off: i64, o: Order },
    St { space: Space, ty: Ty, s: Box<[Slot]>, a: Slot, off: i64, o: Order },
    Atom { space: Space, op: AtomOp, ty: Ty, d: Option<Slot>, a: Slot, off: i64, b: Slot, c: Slot, o: Order },
    Fence { acquire: bool, release: bool },
    Bra { target: u32 },
    Exit,
    Bar { id: Slot, count: Option<Slot>, aligned: bool },
    WarpBar { mask: Slot },
    Shfl { mode: ShflMode, d: Slot, p: Option<Slot>, a: Slot, b: Slot, c: Slot, mask: Slot },
    Vote { mode: VoteMode, d: Slot, a: PredRef, mask: Slot },
    ActiveMask { d: Slot },
    Trap,
}

/// A decoded instruction.
#[derive(Debug, Clone)]
pub struct Instr {
    /// The guard, if it has one.
    pub guard: Option<PredRef>,
    /// What it does.
    pub op: Op,
    /// Its line in the PTX text.
    pub line: u32,
    /// What it counts as.
    pub class: Class,
}

/// What fills a row before a warp starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Fill {
    /// The same value in every lane.
    Imm(u64),
    /// A parameter: its offset, bytes, and whether it is sign-extended to `width` bits.
    Param {
        offset: u32,
        bytes: u32,
        signed: bool,
        width: u32,
    },
    /// Thread index along an axis.
    Tid(u8),
    NTid(u8),
    CtaId(u8),
    NCtaId(u8),
    LaneId,
    WarpId,
    NWarpId,
    LaneMask(u8),
    GridId,
    DynSmemSize,
}

/// One parameter of a kernel in its parameter block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamLayout {
    /// Offset from the block's start.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
    /// Alignment in bytes.
    pub align: u32,
}

/// A kernel, ready to run.
#[derive(Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Its parameters in order.
    pub params: Vec<ParamLayout>,
    /// Bytes of the whole parameter block.
    pub param_bytes: u32,
    /// Instructions, calls put in place.
    pub code: Vec<Instr>,
    /// How many register rows a warp has.
    pub rows: u32,
    /// How many predicates.
    pub preds: u32,
    /// Rows that are filled before a warp starts.
    pub fills: Vec<(Slot, Fill)>,
    /// Static shared variables: offset and size, in order, with red zones between.
    pub shared: Vec<(u32, u32)>,
    /// Bytes of shared memory that its declarations ask for, without red zones.
    pub shared_static: u32,
    /// Where dynamic shared memory begins.
    pub dynamic_at: u32,
    /// Local variables of a thread: offset and size.
    pub local: Vec<(u32, u32)>,
    /// Bytes of local memory of a thread, red zones included.
    pub local_bytes: u32,
    /// Whether some access that may be to shared memory is narrower than four bytes: races are then looked for by byte.
    pub narrow_shared: bool,
    /// Bits of an address that lie inside the narrowest access that may be to global memory, at most those of a word.
    pub global_cell: u32,
    /// Whether it has fences, acquires or releases of global memory: its blocks may then hand values to each other.
    pub orders: bool,
    /// Most threads a block may have (`.maxntid`, `.reqntid`), else 1024.
    pub max_threads: u32,
}
