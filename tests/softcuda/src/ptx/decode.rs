//! Statements to instructions: names become rows, symbols become addresses, and a called function's body takes the call's place.

use std::collections::HashMap;

use super::alu::{self, Cvt, Round, truncate};
use super::ir::*;
use crate::counters::Class;
use crate::fault::Error;
use crate::memory::{LOCAL_BASE, SHARED_BASE};

/// Bytes between variables of shared and local memory that no access may touch.
const RED_ZONE: u64 = 256;
/// A function that calls itself would be put in place for ever.
const MAX_DEPTH: usize = 32;

/// Decodes every entry of `ast`. `symbols` are the addresses of the module's own variables.
pub fn decode(source: &str, ast: &Ast, symbols: &HashMap<String, u64>) -> Result<Vec<Kernel>, Error> {
    ast.functions.iter().filter(|f| f.entry).map(|f| Decoder::new(source, ast, symbols).entry(f)).collect()
}

#[derive(Clone, Copy)]
enum Name {
    Row(Slot, Ty),
    Pred(Slot),
    Address(u64),
    Param(usize),
}

/// Names of a scope, and its ranges of registers (`%r<5>`), which get their rows when first named.
type Scope = (HashMap<String, Name>, Vec<(String, Ty)>);

/// One level of calls: scopes of names, and labels.
struct Frame {
    scopes: Vec<Scope>,
    labels: HashMap<String, u32>,
    jumps: Vec<(usize, String, u32)>,
    returns: Vec<usize>,
}

struct Decoder<'a> {
    source: &'a str,
    ast: &'a Ast,
    symbols: &'a HashMap<String, u64>,
    k: Kernel,
    fills: HashMap<Fill, Slot>,
    /// Parameters of calls: a row for each offset stored to.
    params: Vec<HashMap<i64, (Slot, u64)>>,
    frames: Vec<Frame>,
    shared: HashMap<String, u64>,
    shared_end: u64,
    local_end: u64,
    line: u32,
    class: Class,
}

/// What an instruction counts as, by its name.
fn class(parts: &[&str]) -> Class {
    let has = |s: &str| parts.contains(&s);
    let float = has("f32") || has("f64") || has("f16") || has("bf16");
    match parts[0] {
        "cvt" => Class::Conversion,
        "ex2" | "lg2" | "sin" | "cos" | "tanh" | "rcp" | "rsqrt" | "sqrt" => Class::Special,
        "div" if float => Class::Special,
        "atom" | "red" => Class::Atomic,
        "ld" | "ldu" if has("param") => Class::Other,
        "st" if has("param") => Class::Other,
        "ld" | "ldu" | "st" if has("local") => Class::Local,
        "ld" | "ldu" if has("shared") => Class::LoadShared,
        "st" if has("shared") => Class::StoreShared,
        "ld" | "ldu" => Class::LoadGlobal,
        "st" => Class::StoreGlobal,
        "bra" | "ret" | "exit" | "trap" | "call" => Class::Control,
        "bar" | "barrier" | "membar" | "fence" => Class::Barrier,
        "shfl" | "vote" | "activemask" | "match" => Class::Shuffle,
        "mov" | "cvta" | "selp" | "prefetch" | "prefetchu" | "nanosleep" => Class::Other,
        "fma" | "mad" if has("f32") => Class::Fma32,
        _ if has("f64") => Class::Fp64,
        _ if float => Class::Fp32,
        "add" | "sub" | "mul" | "mad" | "mul24" | "mad24" | "div" | "rem" | "neg" | "abs" | "min" | "max"
        | "and" | "or" | "xor" | "not" | "shl" | "shr" | "shf" | "setp" | "set" | "slct" | "popc" | "clz"
        | "brev" | "bfe" | "bfi" | "bfind" | "prmt" | "sad" | "lop3" | "fns" => Class::Int,
        _ => Class::Other,
    }
}

impl<'a> Decoder<'a> {
    fn new(source: &'a str, ast: &'a Ast, symbols: &'a HashMap<String, u64>) -> Self {
        let k = Kernel {
            name: String::new(),
            params: Vec::new(),
            param_bytes: 0,
            code: Vec::new(),
            rows: 0,
            preds: 0,
            fills: Vec::new(),
            shared: Vec::new(),
            shared_static: 0,
            dynamic_at: 0,
            local: Vec::new(),
            local_bytes: 0,
            narrow_shared: false,
            global_cell: 2,
            orders: false,
            max_threads: 1024,
        };
        Decoder {
            source,
            ast,
            symbols,
            k,
            fills: HashMap::new(),
            params: vec![HashMap::new()],
            frames: Vec::new(),
            shared: HashMap::new(),
            shared_end: 0,
            local_end: 0,
            line: 1,
            class: Class::Other,
        }
    }

    fn err(&self, why: impl Into<String>) -> Error {
        Error::ptx(self.source, self.line, why)
    }

    fn entry(mut self, f: &'a Function) -> Result<Kernel, Error> {
        self.k.name = f.name.clone();
        let mut at = 0u64;
        for p in &f.params {
            at = at.next_multiple_of(p.align);
            self.k.params.push(ParamLayout { offset: at as u32, size: p.size as u32, align: p.align as u32 });
            at += p.size;
        }
        if at > 4096 {
            self.line = f.line;
            return Err(self.err(format!("parameters of {at} bytes, where 4096 fit")));
        }
        self.k.param_bytes = at as u32;
        // Where dynamic shared memory begins must be known before an instruction names it.
        for v in self.ast.vars.iter().filter(|v| v.space == "shared" && v.size > 0) {
            self.shared_var(v);
        }
        let names = f.params.iter().map(|p| (p.name.clone(), Name::Param(0))).collect();
        self.static_shared(f, 0);
        self.k.dynamic_at = self.shared_end.next_multiple_of(16) as u32;
        self.body(f, names)?;
        self.k.local_bytes = self.local_end.next_multiple_of(16) as u32;
        Ok(self.k)
    }

    /// Static shared variables of a function and of what it calls, placed once each.
    fn static_shared(&mut self, f: &Function, depth: usize) {
        for (_, s) in &f.body {
            match s {
                Stmt::Var(v) if v.space == "shared" && v.size > 0 => self.shared_var(v),
                Stmt::Call(_, _, name, _) if depth < MAX_DEPTH => {
                    if let Some(g) = self.ast.functions.iter().find(|g| g.name == *name) {
                        self.static_shared(g, depth + 1);
                    }
                }
                _ => {}
            }
        }
    }

    fn shared_var(&mut self, v: &Var) {
        if !self.shared.contains_key(&v.name) {
            let at = self.shared_end.next_multiple_of(v.align);
            self.k.shared.push((at as u32, v.size as u32));
            // More than fits is refused at launch.
            let asked = u64::from(self.k.shared_static).next_multiple_of(v.align) + v.size;
            self.k.shared_static = u32::try_from(asked).unwrap_or(u32::MAX);
            self.shared.insert(v.name.clone(), at);
            self.shared_end = at + v.size + RED_ZONE;
        }
    }

    fn row(&mut self) -> Slot {
        self.k.rows += 1;
        self.k.rows - 1
    }

    fn fill(&mut self, f: Fill) -> Slot {
        if let Some(s) = self.fills.get(&f) {
            return *s;
        }
        let s = self.row();
        self.fills.insert(f, s);
        self.k.fills.push((s, f));
        s
    }

    fn emit(&mut self, guard: Option<PredRef>, op: Op) {
        self.k.code.push(Instr { guard, op, line: self.line, class: self.class });
    }

    fn here(&self) -> u32 {
        self.k.code.len() as u32
    }

    fn declare(&mut self, name: &str, what: Name) {
        if let Some((names, _)) = self.frames.last_mut().and_then(|f| f.scopes.last_mut()) {
            names.insert(name.into(), what);
        }
    }

    fn find(&mut self, name: &str) -> Option<Name> {
        let frame = self.frames.last()?;
        let mut ranged = None;
        for (at, (names, ranges)) in frame.scopes.iter().enumerate().rev() {
            if let Some(n) = names.get(name) {
                return Some(*n);
            }
            if let Some((_, ty)) = ranges
                .iter()
                .find(|(p, _)| name.strip_prefix(p.as_str()).is_some_and(|r| r.parse::<u32>().is_ok()))
            {
                ranged = Some((at, *ty));
                break;
            }
        }
        if let Some((at, ty)) = ranged {
            // Registers of a range get their row when first named.
            let n = self.register(ty);
            if let Some(f) = self.frames.last_mut() {
                f.scopes[at].0.insert(name.into(), n);
            }
            return Some(n);
        }
        if let Some(at) = self.shared.get(name) {
            return Some(Name::Address(*at));
        }
        if self.ast.vars.iter().any(|v| v.name == name && v.space == "shared") {
            return Some(Name::Address(u64::from(self.k.dynamic_at)));
        }
        self.symbols.get(name).map(|a| Name::Address(*a))
    }

    fn register(&mut self, ty: Ty) -> Name {
        if ty == Ty::Pred {
            self.k.preds += 1;
            Name::Pred(self.k.preds - 1)
        } else {
            Name::Row(self.row(), ty)
        }
    }

    fn body(&mut self, f: &'a Function, names: HashMap<String, Name>) -> Result<(), Error> {
        if self.frames.len() >= MAX_DEPTH {
            return Err(self.err("calls nest too deep: recursion is not supported"));
        }
        self.frames.push(Frame {
            scopes: vec![(names, Vec::new())],
            labels: HashMap::new(),
            jumps: Vec::new(),
            returns: Vec::new(),
        });
        for (line, stmt) in &f.body {
            self.line = *line;
            self.statement(stmt)?;
        }
        let end = self.here();
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        for (at, label, line) in frame.jumps {
            let Some(target) = frame.labels.get(&label) else {
                self.line = line;
                return Err(self.err(format!("label `{label}` is not in this function")));
            };
            self.k.code[at].op = Op::Bra { target: *target };
        }
        if self.frames.is_empty() {
            // Running off the end is a return.
            self.class = Class::Control;
            self.emit(None, Op::Exit);
        } else {
            for at in frame.returns {
                self.k.code[at].op = Op::Bra { target: end };
            }
        }
        Ok(())
    }

    fn statement(&mut self, stmt: &'a Stmt) -> Result<(), Error> {
        match stmt {
            Stmt::Label(name) => {
                let here = self.here();
                if let Some(f) = self.frames.last_mut()
                    && f.labels.insert(name.clone(), here).is_some()
                {
                    return Err(self.err(format!("label `{name}` stands twice in this function")));
                }
            }
            Stmt::Reg(ty, name, None) => {
                let n = self.register(*ty);
                self.declare(name, n);
            }
            Stmt::Reg(ty, name, Some(_)) => {
                if let Some((_, ranges)) = self.frames.last_mut().and_then(|f| f.scopes.last_mut()) {
                    ranges.push((name.clone(), *ty));
                }
            }
            Stmt::Var(v) => match v.space.as_str() {
                "shared" => {}
                "local" => {
                    let at = self.local_end.next_multiple_of(v.align.max(16));
                    self.local_end = at + v.size + RED_ZONE;
                    if self.local_end > 1 << 20 {
                        return Err(self.err("local memory of more than 1 MiB a thread"));
                    }
                    self.k.local.push((at as u32, v.size as u32));
                    self.declare(&v.name, Name::Address(at));
                }
                "param" => {
                    self.params.push(HashMap::new());
                    self.declare(&v.name, Name::Param(self.params.len() - 1));
                }
                other => {
                    return Err(self.err(format!("a variable in `.{other}` inside a body is not supported")));
                }
            },
            Stmt::Open => {
                if let Some(f) = self.frames.last_mut() {
                    f.scopes.push((HashMap::new(), Vec::new()));
                }
            }
            Stmt::Close => {
                if let Some(f) = self.frames.last_mut() {
                    f.scopes.pop();
                }
            }
            Stmt::Call(guard, returns, name, args) => {
                self.class = Class::Control;
                self.call(guard, returns, name, args)?;
            }
            Stmt::Instr(guard, op, args) => {
                let parts: Vec<&str> = op.iter().map(String::as_str).collect();
                if op[0].starts_with('.') {
                    // `.maxntid` and `.reqntid`, kept by the parser as an instruction.
                    let n: i128 = args.iter().map(|a| if let Operand::Int(n) = a { *n } else { 1 }).product();
                    self.k.max_threads = u32::try_from(n).unwrap_or(1024).min(1024);
                    return Ok(());
                }
                let guard = self.guard(guard)?;
                self.class = class(&parts);
                match self.instr(guard, &parts, args)? {
                    true => {}
                    false => {
                        return Err(self.err(format!("`{}` in this form is not supported", op.join("."))));
                    }
                }
            }
        }
        Ok(())
    }

    fn guard(&mut self, g: &Option<(String, bool)>) -> Result<Option<PredRef>, Error> {
        g.as_ref().map(|(name, not)| Ok(PredRef { at: self.pred_slot(name)?, not: *not })).transpose()
    }

    fn call(
        &mut self,
        guard: &Option<(String, bool)>,
        returns: &[String],
        name: &str,
        args: &[String],
    ) -> Result<(), Error> {
        let Some(f) = self.ast.functions.iter().find(|f| f.name == name && !f.entry) else {
            return Err(self.err(format!("function `{name}` has no body in this module")));
        };
        if f.returns.len() != returns.len() || f.params.len() != args.len() {
            return Err(self.err(format!(
                "`{name}` takes {} and returns {}",
                f.params.len(),
                f.returns.len()
            )));
        }
        let mut names = HashMap::new();
        for (theirs, ours) in f.returns.iter().zip(returns).chain(f.params.iter().zip(args)) {
            match self.find(ours) {
                Some(Name::Param(p)) => names.insert(theirs.name.clone(), Name::Param(p)),
                _ => return Err(self.err(format!("`{ours}` is no parameter"))),
            };
        }
        // A guarded call is a jump round the body for the other lanes.
        let skip = match self.guard(guard)? {
            Some(g) => {
                self.emit(Some(PredRef { at: g.at, not: !g.not }), Op::Nop);
                Some(self.k.code.len() - 1)
            }
            None => None,
        };
        let line = self.line;
        self.body(f, names)?;
        self.line = line;
        if let Some(at) = skip {
            self.k.code[at].op = Op::Bra { target: self.here() };
        }
        Ok(())
    }

    fn pred_slot(&mut self, name: &str) -> Result<Slot, Error> {
        match self.find(name) {
            Some(Name::Pred(p)) => Ok(p),
            _ => Err(self.err(format!("`{name}` is no predicate"))),
        }
    }

    fn pred(&mut self, o: &Operand) -> Result<PredRef, Error> {
        match o {
            Operand::Name(n) => Ok(PredRef { at: self.pred_slot(n)?, not: false }),
            Operand::Not(n) => Ok(PredRef { at: self.pred_slot(n)?, not: true }),
            _ => Err(self.err("a predicate was expected")),
        }
    }

    /// A register to write: its row and its width in bits.
    fn dst(&mut self, o: &Operand) -> Result<(Slot, u32), Error> {
        let Operand::Name(n) = o else { return Err(self.err("a register was expected")) };
        if n == "_" {
            return Ok((self.row(), 64));
        }
        match self.find(n) {
            Some(Name::Row(s, ty)) => Ok((s, ty.bytes() as u32 * 8)),
            _ => Err(self.err(format!("`{n}` is no register that this instruction can write"))),
        }
    }

    /// An operand to read, as a row; immediates are cut to `ty`.
    fn src(&mut self, o: &Operand, ty: Ty) -> Result<Slot, Error> {
        let bits = ty.bytes() as u32 * 8;
        match o {
            Operand::Int(v) => {
                let v = match ty {
                    Ty::F32 => u64::from((*v as f32).to_bits()),
                    Ty::F64 => (*v as f64).to_bits(),
                    _ => truncate(*v as u64, bits),
                };
                Ok(self.fill(Fill::Imm(v)))
            }
            Operand::Float(v, false) if ty == Ty::F64 => {
                Ok(self.fill(Fill::Imm(f64::from(f32::from_bits(*v as u32)).to_bits())))
            }
            Operand::Float(v, _) => Ok(self.fill(Fill::Imm(*v))),
            Operand::Sum(n, off) => match self.find(n) {
                Some(Name::Address(a)) => {
                    Ok(self.fill(Fill::Imm(truncate(a.wrapping_add_signed(*off), bits))))
                }
                _ => Err(self.err(format!("`{n}` is no variable"))),
            },
            Operand::Name(n) => {
                if let Some(f) = special(n) {
                    return Ok(self.fill(f));
                }
                match self.find(n) {
                    Some(Name::Row(s, _)) => Ok(s),
                    Some(Name::Address(a)) => Ok(self.fill(Fill::Imm(truncate(a, bits)))),
                    Some(Name::Pred(_)) => {
                        Err(self.err(format!("`{n}` is a predicate where a value was expected")))
                    }
                    Some(Name::Param(_)) => {
                        Err(self.err(format!("the address of parameter `{n}` is not supported")))
                    }
                    None if n.starts_with('%') => Err(self.err(format!("register `{n}` is not known"))),
                    None => Err(self.err(format!("symbol `{n}` is not known"))),
                }
            }
            _ => Err(self.err("a value was expected")),
        }
    }

    fn addr(&mut self, o: &Operand) -> Result<(Slot, i64), Error> {
        match o {
            Operand::Addr(None, off) => Ok((self.fill(Fill::Imm(0)), *off)),
            Operand::Addr(Some(n), off) => Ok((self.src(&Operand::Name(n.clone()), Ty::U64)?, *off)),
            _ => Err(self.err("an address was expected")),
        }
    }

    /// The elements of a vector operand, or the operand itself.
    fn parts<'o>(&self, o: &'o Operand, n: usize) -> Result<Vec<&'o Operand>, Error> {
        let parts: Vec<&Operand> = match o {
            Operand::Vector(v) => v.iter().collect(),
            other => vec![other],
        };
        if parts.len() == n { Ok(parts) } else { Err(self.err(format!("{n} elements were expected"))) }
    }

    fn instr(&mut self, g: Option<PredRef>, op: &[&str], args: &[Operand]) -> Result<bool, Error> {
        let name = op[0];
        let mods = &op[1..];
        let want = |n: usize| args.len() == n;
        let ty = mods.last().and_then(|t| Ty::parse(t));
        match name {
            "ld" | "ldu" | "st" => return self.load_store(g, op, args),
            "atom" | "red" => return self.atomic(g, op, args),
            "bra" if want(1) => {
                let Operand::Name(label) = &args[0] else { return Ok(false) };
                let (at, line) = (self.k.code.len(), self.line);
                if let Some(f) = self.frames.last_mut() {
                    f.jumps.push((at, label.clone(), line));
                }
                self.emit(g, Op::Bra { target: 0 });
            }
            "ret" if want(0) => {
                let at = self.k.code.len();
                if self.frames.len() > 1
                    && let Some(f) = self.frames.last_mut()
                {
                    f.returns.push(at);
                }
                self.emit(g, Op::Exit);
            }
            "exit" if want(0) => self.emit(g, Op::Exit),
            "trap" if want(0) => self.emit(g, Op::Trap),
            // Accesses become visible in program order here: fences have nothing to do but to order blocks for the race check. Those
            // between proxies order no blocks, nor do those of a cluster, which is one block here.
            "membar" | "fence" if want(0) => {
                let has = |s: &str| mods.contains(&s);
                let narrow = has("cta") || has("cluster") || mods.iter().any(|m| m.starts_with("proxy"));
                let both = name == "membar" || has("sc") || has("acq_rel");
                let (acquire, release) = (both || has("acquire"), both || has("release"));
                self.k.orders |= !has("cta");
                let orders = !narrow && (acquire || release);
                self.emit(g, if orders { Op::Fence { acquire, release } } else { Op::Nop });
            }
            "prefetch" | "prefetchu" | "nanosleep" => self.emit(g, Op::Nop),
            "bar" | "barrier" => match mods {
                ["warp", "sync"] if want(1) && name == "bar" => {
                    let mask = self.src(&args[0], Ty::U32)?;
                    self.emit(g, Op::WarpBar { mask });
                }
                ["sync"] | ["cta", "sync"] | ["sync", "aligned"] | ["cta", "sync", "aligned"]
                    if !args.is_empty() && args.len() <= 2 =>
                {
                    let id = self.src(&args[0], Ty::U32)?;
                    let count = args.get(1).map(|c| self.src(c, Ty::U32)).transpose()?;
                    self.emit(g, Op::Bar { id, count, aligned: name == "bar" || mods.contains(&"aligned") });
                }
                _ => return Ok(false),
            },
            "shfl" if want(5) && mods.len() == 3 && mods[0] == "sync" && mods[2] == "b32" => {
                let mode = match mods[1] {
                    "up" => ShflMode::Up,
                    "down" => ShflMode::Down,
                    "bfly" => ShflMode::Bfly,
                    "idx" => ShflMode::Idx,
                    _ => return Ok(false),
                };
                let (d, p) = match &args[0] {
                    Operand::Pair(d, p) => (self.dst(&Operand::Name(d.clone()))?.0, Some(self.pred_slot(p)?)),
                    o => (self.dst(o)?.0, None),
                };
                let a = self.src(&args[1], Ty::U32)?;
                let b = self.src(&args[2], Ty::U32)?;
                let c = self.src(&args[3], Ty::U32)?;
                let mask = self.src(&args[4], Ty::U32)?;
                self.emit(g, Op::Shfl { mode, d, p, a, b, c, mask });
            }
            "vote" if want(3) && mods.len() == 3 && mods[0] == "sync" => {
                let (mode, d) = match (mods[1], mods[2]) {
                    ("all", "pred") => (VoteMode::All, self.pred(&args[0])?.at),
                    ("any", "pred") => (VoteMode::Any, self.pred(&args[0])?.at),
                    ("uni", "pred") => (VoteMode::Uni, self.pred(&args[0])?.at),
                    ("ballot", "b32") => (VoteMode::Ballot, self.dst(&args[0])?.0),
                    _ => return Ok(false),
                };
                let a = self.pred(&args[1])?;
                let mask = self.src(&args[2], Ty::U32)?;
                self.emit(g, Op::Vote { mode, d, a, mask });
            }
            "activemask" if want(1) => {
                let (d, _) = self.dst(&args[0])?;
                self.emit(g, Op::ActiveMask { d });
            }
            "cvta" if want(2) && mods.len() >= 2 => {
                let (d, _) = self.dst(&args[0])?;
                let a = self.src(&args[1], Ty::U64)?;
                let (to, space) = if mods[0] == "to" { (true, mods[1]) } else { (false, mods[0]) };
                let base = match space {
                    "global" | "const" | "param" => 0,
                    "shared" => SHARED_BASE,
                    "local" => LOCAL_BASE,
                    _ => return Ok(false),
                };
                if base == 0 {
                    self.emit(g, Op::Mov { d, a });
                } else {
                    let b = self.fill(Fill::Imm(base));
                    let Some(f) = alu::binary(if to { "sub" } else { "add" }, &[], Ty::U64) else {
                        return Ok(false);
                    };
                    self.emit(g, Op::Bin { f, d, a, b });
                }
            }
            "mov" if want(2) && mods.len() == 1 => return self.mov(g, ty, &args[0], &args[1]),
            "cvt" if want(2) => return self.cvt(g, mods, &args[0], &args[1]),
            "setp" | "set" => return self.compare(g, name, mods, args),
            "selp" if want(4) && mods.len() == 1 => {
                let Some(ty) = ty else { return Ok(false) };
                let (d, _) = self.dst(&args[0])?;
                let (a, b) = (self.src(&args[1], ty)?, self.src(&args[2], ty)?);
                let p = self.pred(&args[3])?;
                self.emit(g, Op::Selp { d, a, b, p });
            }
            "and" | "or" | "xor" if ty == Some(Ty::Pred) && want(3) => {
                let d = self.pred(&args[0])?.at;
                let (a, b) = (self.pred(&args[1])?, self.pred(&args[2])?);
                let f = match name {
                    "and" => Comb::And,
                    "or" => Comb::Or,
                    _ => Comb::Xor,
                };
                self.emit(g, Op::PBin { f, d, a, b });
            }
            "not" if ty == Some(Ty::Pred) && want(2) => {
                let d = self.pred(&args[0])?.at;
                let a = self.pred(&args[1])?;
                self.emit(g, Op::PMov { d, a: PredRef { not: !a.not, ..a } });
            }
            "bfi" if want(5) => return self.bfi(g, ty, args),
            _ => {
                let Some(ty) = ty else { return Ok(false) };
                let mods = &mods[..mods.len() - 1];
                return self.arithmetic(g, name, mods, ty, args);
            }
        }
        Ok(true)
    }

    fn arithmetic(
        &mut self,
        g: Option<PredRef>,
        name: &str,
        mods: &[&str],
        ty: Ty,
        args: &[Operand],
    ) -> Result<bool, Error> {
        let Some(first) = args.first() else { return Ok(false) };
        match args.len() {
            2 => {
                let Some(f) = alu::unary(name, mods, ty) else { return Ok(false) };
                let (d, a) = (self.dst(first)?.0, self.src(&args[1], ty)?);
                self.emit(g, Op::Un { f, d, a });
            }
            3 => {
                let Some(f) = alu::binary(name, mods, ty) else { return Ok(false) };
                let (d, a) = (self.dst(first)?.0, self.src(&args[1], ty)?);
                let b = self.src(&args[2], if matches!(name, "shl" | "shr") { Ty::U32 } else { ty })?;
                self.emit(g, Op::Bin { f, d, a, b });
            }
            4 => {
                // slct's type is that of the values; the type behind it is that of the selector.
                let (mods, ty) = if name == "slct" {
                    let Some(value) = mods.first().and_then(|t| Ty::parse(t)) else { return Ok(false) };
                    (if ty == Ty::F32 { vec!["f32"] } else { vec!["s32"] }, value)
                } else {
                    (mods.to_vec(), ty)
                };
                let Some(f) = alu::ternary(name, &mods, ty) else { return Ok(false) };
                let (d, a) = (self.dst(first)?.0, self.src(&args[1], ty)?);
                let b = self.src(&args[2], if name == "bfe" { Ty::U32 } else { ty })?;
                let c_ty = match (name, ty) {
                    ("bfe", _) => Ty::U32,
                    ("mad", Ty::U32) if mods == ["wide"] => Ty::U64,
                    ("mad", Ty::S32) if mods == ["wide"] => Ty::U64,
                    ("slct", _) => Ty::U32,
                    _ => ty,
                };
                let c = self.src(&args[3], c_ty)?;
                self.emit(g, Op::Tri { f, d, a, b, c });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `bfi` as three steps of its own: five operands are rare enough to take one lane function with a packed field.
    fn bfi(&mut self, g: Option<PredRef>, ty: Option<Ty>, args: &[Operand]) -> Result<bool, Error> {
        let Some(ty @ (Ty::U32 | Ty::U64)) = ty else { return Ok(false) };
        let (d, a, b) = (self.dst(&args[0])?.0, self.src(&args[1], ty)?, self.src(&args[2], ty)?);
        let (pos, len) = (self.src(&args[3], Ty::U32)?, self.src(&args[4], Ty::U32)?);
        let field = self.row();
        self.emit(g, Op::Pack { d: field, parts: Box::new([pos, len]), bits: 32 });
        let f: alu::F3 = if ty == Ty::U32 {
            |a, b, c, o| (0..32).for_each(|l| o[l] = alu::bfi(a[l], b[l], c[l], c[l] >> 32, 32))
        } else {
            |a, b, c, o| (0..32).for_each(|l| o[l] = alu::bfi(a[l], b[l], c[l], c[l] >> 32, 64))
        };
        self.emit(g, Op::Tri { f, d, a, b, c: field });
        Ok(true)
    }

    fn mov(&mut self, g: Option<PredRef>, ty: Option<Ty>, d: &Operand, a: &Operand) -> Result<bool, Error> {
        let Some(ty) = ty else { return Ok(false) };
        match (d, a) {
            (_, Operand::Int(v)) if ty == Ty::Pred => {
                let d = self.pred(d)?.at;
                self.emit(g, Op::PConst { d, value: *v != 0 });
            }
            _ if ty == Ty::Pred => {
                let (d, a) = (self.pred(d)?.at, self.pred(a)?);
                self.emit(g, Op::PMov { d, a });
            }
            (Operand::Vector(parts), _) => {
                let bits = ty.bytes() as u32 * 8 / parts.len().max(1) as u32;
                let mut slots = Vec::new();
                for p in parts {
                    slots.push(if *p == Operand::Name("_".into()) { None } else { Some(self.dst(p)?.0) });
                }
                let a = self.src(a, ty)?;
                self.emit(g, Op::Unpack { parts: slots.into(), a, bits });
            }
            (_, Operand::Vector(parts)) => {
                let bits = ty.bytes() as u32 * 8 / parts.len().max(1) as u32;
                let part = match bits {
                    8 => Ty::U8,
                    16 => Ty::U16,
                    32 => Ty::U32,
                    _ => return Ok(false),
                };
                let (d, _) = self.dst(d)?;
                let slots = parts.iter().map(|p| self.src(p, part)).collect::<Result<Vec<_>, _>>()?;
                self.emit(g, Op::Pack { d, parts: slots.into(), bits });
            }
            _ => {
                let (d, a) = (self.dst(d)?.0, self.src(a, ty)?);
                self.emit(g, Op::Mov { d, a });
            }
        }
        Ok(true)
    }

    fn cvt(&mut self, g: Option<PredRef>, mods: &[&str], d: &Operand, a: &Operand) -> Result<bool, Error> {
        let [mods @ .., to, from] = mods else { return Ok(false) };
        let (Some(to), Some(from)) = (Ty::parse(to), Ty::parse(from)) else { return Ok(false) };
        let (d, width) = self.dst(d)?;
        let a = self.src(a, from)?;
        let mut c = Cvt { to, from, round: Round::Near, integral: false, sat: false, ftz: false, width };
        for m in mods {
            match *m {
                "sat" => c.sat = true,
                "ftz" => c.ftz = true,
                "rn" | "rni" => c.round = Round::Near,
                "rz" | "rzi" => c.round = Round::Zero,
                "rm" | "rmi" => c.round = Round::Down,
                "rp" | "rpi" => c.round = Round::Up,
                _ => return Ok(false),
            }
            c.integral |= m.ends_with('i');
        }
        // The frequent widenings and cuts need no general conversion.
        let f = match (to, from) {
            (Ty::U64 | Ty::S64, Ty::U32) | (Ty::U32 | Ty::S32, Ty::U64 | Ty::S64) if !c.sat => {
                let f: alu::F1 = |a, o| (0..32).for_each(|l| o[l] = a[l] & 0xffff_ffff);
                Some(f)
            }
            (Ty::U64 | Ty::S64, Ty::S32) if !c.sat => {
                let f: alu::F1 = |a, o| (0..32).for_each(|l| o[l] = a[l] as i32 as u64);
                Some(f)
            }
            _ => None,
        };
        self.emit(g, f.map_or(Op::Cvt { c, d, a }, |f| Op::Un { f, d, a }));
        Ok(true)
    }

    fn compare(
        &mut self,
        g: Option<PredRef>,
        name: &str,
        mods: &[&str],
        args: &[Operand],
    ) -> Result<bool, Error> {
        if name == "set" {
            return Ok(false);
        }
        let [cmp, mid @ .., ty] = mods else { return Ok(false) };
        let Some(ty) = Ty::parse(ty) else { return Ok(false) };
        let (mut ftz, mut comb) = (false, Comb::None);
        for m in mid {
            match *m {
                "ftz" => ftz = true,
                "and" => comb = Comb::And,
                "or" => comb = Comb::Or,
                "xor" => comb = Comb::Xor,
                _ => return Ok(false),
            }
        }
        if args.len() != if comb == Comb::None { 3 } else { 4 } {
            return Ok(false);
        }
        let Some(f) = alu::comparison(cmp, ftz, ty) else { return Ok(false) };
        let (a, b) = (self.src(&args[1], ty)?, self.src(&args[2], ty)?);
        let c = match args.get(3) {
            Some(c) => self.pred(c)?,
            None => PredRef { at: 0, not: false },
        };
        let (d, q) = match &args[0] {
            Operand::Pair(d, q) => (self.pred_slot(d)?, Some(self.pred_slot(q)?)),
            o => (self.pred(o)?.at, None),
        };
        self.emit(g, Op::Setp { f, d, q, a, b, comb, c });
        Ok(true)
    }

    fn load_store(&mut self, g: Option<PredRef>, op: &[&str], args: &[Operand]) -> Result<bool, Error> {
        let [name, mods @ .., ty] = op else { return Ok(false) };
        let Some(ty) = Ty::parse(ty) else { return Ok(false) };
        let [x, y] = args else { return Ok(false) };
        let (addr, value) = if *name == "st" { (x, y) } else { (y, x) };
        let (mut space, mut n, mut param) = (Space::Generic, 1, false);
        for m in mods {
            match *m {
                "global" => space = Space::Global,
                "const" => space = Space::Const,
                "shared" | "shared::cta" => space = Space::Shared,
                "local" => space = Space::Local,
                "param" => param = true,
                "v2" => n = 2,
                "v4" => n = 4,
                // How it is cached or ordered changes nothing here.
                "volatile" | "relaxed" | "acquire" | "release" | "weak" | "nc" | "ca" | "cg" | "cs"
                | "lu" | "cv" | "wb" | "wt" | "cta" | "gpu" | "sys" => {}
                m if m.starts_with("L1::") || m.starts_with("L2::") => {}
                _ => return Ok(false),
            }
        }
        let parts = self.parts(value, n)?;
        if param {
            return self.param_access(g, *name == "st", ty, addr, &parts);
        }
        let (a, off) = self.addr(addr)?;
        if ty.bytes() < 4 && matches!(space, Space::Shared | Space::Generic) {
            self.k.narrow_shared = true;
        }
        let order = order(mods);
        if matches!(space, Space::Global | Space::Generic) {
            self.k.orders |= mods.iter().any(|m| matches!(*m, "acquire" | "release"));
            self.k.global_cell = self.k.global_cell.min(ty.bytes().trailing_zeros());
        }
        if *name == "st" {
            let s = parts.iter().map(|p| self.src(p, ty)).collect::<Result<Vec<_>, _>>()?;
            self.emit(g, Op::St { space, ty, s: s.into(), a, off, o: order });
        } else {
            let (mut d, mut width) = (Vec::new(), 64);
            for p in parts {
                if *p == Operand::Name("_".into()) {
                    d.push(None);
                } else {
                    let (s, w) = self.dst(p)?;
                    d.push(Some(s));
                    width = w;
                }
            }
            self.emit(g, Op::Ld { space, ty, width, d: d.into(), a, off, o: order });
        }
        Ok(true)
    }

    /// Kernel parameters are rows filled at launch; those of calls are rows that hand values over.
    fn param_access(
        &mut self,
        g: Option<PredRef>,
        store: bool,
        ty: Ty,
        addr: &Operand,
        parts: &[&Operand],
    ) -> Result<bool, Error> {
        let Operand::Addr(Some(name), off) = addr else { return Ok(false) };
        let Some(Name::Param(id)) = self.find(name) else {
            return Err(self.err(format!("`{name}` is no parameter: an indexed parameter is not supported")));
        };
        for (i, part) in parts.iter().enumerate() {
            let off = off + i as i64 * ty.bytes() as i64;
            if id == 0 {
                let base = self.kernel_param(name);
                let bytes = ty.bytes() as u32;
                let (d, width) = self.dst(part)?;
                let Some((layout, offset)) = base.zip(u32::try_from(off).ok()) else { return Ok(false) };
                if store || u64::from(offset) + u64::from(bytes) > u64::from(layout.size) {
                    return Err(self.err("an access outside its parameter"));
                }
                let a = self.fill(Fill::Param {
                    offset: layout.offset + offset,
                    bytes,
                    signed: ty.is_signed(),
                    width,
                });
                self.emit(g, Op::Mov { d, a });
            } else if store {
                let a = self.src(part, ty)?;
                let slot = match self.params[id].get(&off) {
                    Some((slot, _)) => *slot,
                    None => self.row(),
                };
                self.params[id].insert(off, (slot, ty.bytes()));
                self.emit(g, Op::Mov { d: slot, a });
            } else {
                let (d, _) = self.dst(part)?;
                let Some((a, bytes)) = self.params[id].get(&off).copied() else {
                    return Err(self.err("a parameter is read that nothing stored at this offset"));
                };
                if bytes != ty.bytes() {
                    return Err(self.err("a parameter is read in another width than it was stored"));
                }
                self.emit(g, Op::Mov { d, a });
            }
        }
        Ok(true)
    }

    fn kernel_param(&self, name: &str) -> Option<ParamLayout> {
        let f = self.ast.functions.iter().find(|f| f.name == self.k.name)?;
        let at = f.params.iter().position(|p| p.name == name)?;
        self.k.params.get(at).cloned()
    }

    fn atomic(&mut self, g: Option<PredRef>, op: &[&str], args: &[Operand]) -> Result<bool, Error> {
        let [name, mods @ .., ty] = op else { return Ok(false) };
        let Some(ty) = Ty::parse(ty) else { return Ok(false) };
        let (mut space, mut what) = (Space::Generic, None);
        for m in mods {
            match *m {
                "global" => space = Space::Global,
                "shared" | "shared::cta" => space = Space::Shared,
                "relaxed" | "acquire" | "release" | "acq_rel" | "cta" | "gpu" | "sys" => {}
                "add" => what = Some(AtomOp::Add),
                "min" => what = Some(AtomOp::Min),
                "max" => what = Some(AtomOp::Max),
                "inc" => what = Some(AtomOp::Inc),
                "dec" => what = Some(AtomOp::Dec),
                "and" => what = Some(AtomOp::And),
                "or" => what = Some(AtomOp::Or),
                "xor" => what = Some(AtomOp::Xor),
                "exch" => what = Some(AtomOp::Exch),
                "cas" => what = Some(AtomOp::Cas),
                _ => return Ok(false),
            }
        }
        let Some(op) = what else { return Ok(false) };
        if ty.bytes() < 4 || ty.is_float() && op != AtomOp::Add {
            return Ok(false);
        }
        let (d, rest) = match (*name, args) {
            ("atom", [d, rest @ ..]) => {
                (if *d == Operand::Name("_".into()) { None } else { Some(self.dst(d)?.0) }, rest)
            }
            (_, rest) => (None, rest),
        };
        if rest.len() != if op == AtomOp::Cas { 3 } else { 2 } {
            return Ok(false);
        }
        let (a, off) = self.addr(&rest[0])?;
        let b = self.src(&rest[1], ty)?;
        let c = if op == AtomOp::Cas { self.src(&rest[2], ty)? } else { b };
        let order = Order { device: !mods.contains(&"cta"), ..order(mods) };
        if matches!(space, Space::Global | Space::Generic) {
            self.k.orders |= order.acquire || order.release;
        }
        self.emit(g, Op::Atom { space, op, ty, d, a, off, b, c, o: order });
        Ok(true)
    }
}

/// How an access with these modifiers orders others.
fn order(mods: &[&str]) -> Order {
    let has = |s: &str| mods.contains(&s);
    let strong = has("volatile") || has("relaxed");
    let (acquire, release) = (has("acquire") || has("acq_rel"), has("release") || has("acq_rel"));
    let device = !has("cta");
    Order {
        strong,
        device: device && (strong || acquire || release),
        acquire: device && acquire,
        release: device && release,
    }
}

/// The row fill of a special register.
fn special(name: &str) -> Option<Fill> {
    let axis = |n: &str| match n {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    let (base, rest) = name.strip_prefix('%')?.split_once('.').unwrap_or((&name[1..], ""));
    Some(match base {
        "tid" => Fill::Tid(axis(rest)?),
        "ntid" => Fill::NTid(axis(rest)?),
        "ctaid" => Fill::CtaId(axis(rest)?),
        "nctaid" => Fill::NCtaId(axis(rest)?),
        "laneid" => Fill::LaneId,
        "warpid" => Fill::WarpId,
        "nwarpid" => Fill::NWarpId,
        "lanemask_eq" => Fill::LaneMask(0),
        "lanemask_lt" => Fill::LaneMask(1),
        "lanemask_le" => Fill::LaneMask(2),
        "lanemask_gt" => Fill::LaneMask(3),
        "lanemask_ge" => Fill::LaneMask(4),
        "gridid" => Fill::GridId,
        "dynamic_smem_size" => Fill::DynSmemSize,
        _ => return None,
    })
}
