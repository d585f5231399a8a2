//! Tokens to an [`Ast`].

use super::ir::{Ast, Function, Operand, Stmt, Ty, Var};
use super::lexer::{Tok, Token, lex};
use crate::fault::Error;

struct Parser<'a> {
    source: &'a str,
    toks: Vec<Token>,
    at: usize,
}

/// Parses the text of a module.
pub fn parse(source: &str) -> Result<Ast, Error> {
    let mut p = Parser { source, toks: lex(source)?, at: 0 };
    let mut ast = Ast::default();
    while let Some(tok) = p.peek().cloned() {
        match &tok {
            Tok::Word(w) => match w.as_str() {
                ".version" | ".address_size" => {
                    p.at += 1;
                    let number = p.any("a number")?;
                    if w == ".address_size" && number != Tok::Num("64".into()) {
                        return Err(p.err("only 64-bit addresses are supported"));
                    }
                }
                ".target" => {
                    p.at += 1;
                    p.word("a target")?;
                    while p.take(',') {
                        p.word("a target option")?;
                    }
                }
                ".file" => p.skip_line(),
                ".visible" | ".extern" | ".weak" | ".common" => p.at += 1,
                ".entry" | ".func" => {
                    p.at += 1;
                    let f = p.function(w == ".entry")?;
                    ast.functions.extend(f);
                }
                ".global" | ".const" | ".shared" => ast.vars.extend(p.vars()?),
                ".section" => {
                    while !p.take('}') {
                        p.any("the end of the section")?;
                    }
                }
                ".pragma" => p.skip_to_semicolon()?,
                _ => return Err(p.err(format!("`{w}` is not known at module scope"))),
            },
            Tok::Mark(';') => p.at += 1,
            _ => return Err(p.err("a directive was expected")),
        }
    }
    Ok(ast)
}

fn number(text: &str) -> Option<i128> {
    let t = text.trim_end_matches(['U', 'u']);
    match t.get(..2) {
        Some("0x" | "0X") => i128::from_str_radix(&t[2..], 16).ok(),
        Some("0b" | "0B") => i128::from_str_radix(&t[2..], 2).ok(),
        _ if t.len() > 1 && t.starts_with('0') => i128::from_str_radix(&t[1..], 8).ok(),
        _ => t.parse().ok(),
    }
}

impl Parser<'_> {
    fn line(&self) -> u32 {
        self.toks.get(self.at).or(self.toks.last()).map_or(1, |t| t.line)
    }

    fn err(&self, why: impl Into<String>) -> Error {
        Error::ptx(self.source, self.line(), why)
    }

    fn peek(&self) -> Option<&Tok> {
        self.toks.get(self.at).map(|t| &t.tok)
    }

    fn any(&mut self, what: &str) -> Result<Tok, Error> {
        let tok = self
            .peek()
            .cloned()
            .ok_or_else(|| self.err(format!("the text ends where {what} was expected")))?;
        self.at += 1;
        Ok(tok)
    }

    fn take(&mut self, mark: char) -> bool {
        let hit = self.peek() == Some(&Tok::Mark(mark));
        self.at += usize::from(hit);
        hit
    }

    fn need(&mut self, mark: char) -> Result<(), Error> {
        if self.take(mark) { Ok(()) } else { Err(self.err(format!("`{mark}` was expected"))) }
    }

    fn word(&mut self, what: &str) -> Result<String, Error> {
        match self.any(what)? {
            Tok::Word(w) => Ok(w),
            _ => {
                self.at -= 1;
                Err(self.err(format!("{what} was expected")))
            }
        }
    }

    fn int(&mut self) -> Result<i128, Error> {
        let minus = self.take('-');
        let tok = self.any("a number")?;
        let value = if let Tok::Num(n) = &tok { number(n) } else { None };
        match value {
            Some(v) => Ok(if minus { -v } else { v }),
            None => {
                self.at -= 1;
                Err(self.err("an integer was expected"))
            }
        }
    }

    fn size(&mut self) -> Result<u64, Error> {
        let n = self.int()?;
        u64::try_from(n).ok().filter(|n| *n <= 1 << 40).ok_or_else(|| self.err(format!("{n} is no size")))
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.toks.get(self.at).is_some_and(|t| t.line == line) {
            self.at += 1;
        }
    }

    fn skip_to_semicolon(&mut self) -> Result<(), Error> {
        while !self.take(';') {
            self.any("`;`")?;
        }
        Ok(())
    }

    /// One variable after its state space: `.align 4 .b8 name[24]`, without what follows it.
    fn var(&mut self, space: &str) -> Result<(Var, Ty), Error> {
        let (mut align, mut ty, mut lanes) = (0, None, 1);
        let line = self.line();
        loop {
            let w = self.word("a type or a name")?;
            match w.as_str() {
                ".align" => align = self.size()?,
                ".ptr" | ".global" | ".const" | ".shared" | ".local" => {}
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                _ if w.starts_with('.') => {
                    ty =
                        Some(Ty::parse(&w[1..]).ok_or_else(|| self.err(format!("type `{w}` is not known")))?);
                }
                _ => {
                    let ty = ty.ok_or_else(|| self.err(format!("`{w}` has no type")))?;
                    // Behind a parameter, `.ptr .align 4` is about what it points to.
                    let align = if space == "param" && ty.bytes() == 8 || align == 0 {
                        ty.bytes() * lanes
                    } else {
                        align
                    };
                    let mut size = ty.bytes() * lanes;
                    while self.take('[') {
                        let n = if self.take(']') { 0 } else { self.size()? };
                        if n > 0 {
                            self.need(']')?;
                        }
                        size = size.checked_mul(n).ok_or_else(|| self.err("the array is too large"))?;
                    }
                    if !align.is_power_of_two() {
                        return Err(self.err(format!("{align} is no alignment")));
                    }
                    return Ok((
                        Var { name: w, space: space.into(), align, size, init: Vec::new(), line },
                        ty,
                    ));
                }
            }
        }
    }

    /// `.global .align 4 .b8 a[4] = {...}, b;`
    fn vars(&mut self) -> Result<Vec<Var>, Error> {
        let space = self.word("a state space")?;
        let (mut var, ty) = self.var(&space[1..])?;
        let mut out = Vec::new();
        loop {
            if self.take('=') {
                let unit = ty.bytes() as usize;
                if self.take('{') {
                    while !self.take('}') {
                        let v = self.value(ty)?;
                        var.init.extend_from_slice(&v.to_le_bytes()[..unit]);
                        self.take(',');
                    }
                } else {
                    let v = self.value(ty)?;
                    var.init.extend_from_slice(&v.to_le_bytes()[..unit]);
                }
                if var.size == 0 {
                    var.size = var.init.len() as u64;
                }
                if var.init.len() as u64 > var.size {
                    return Err(self.err("the initialiser is longer than the variable"));
                }
            }
            out.push(var.clone());
            if self.take(';') {
                return Ok(out);
            }
            self.need(',')?;
            var = Var { name: self.word("a name")?, init: Vec::new(), size: ty.bytes(), ..var };
            if self.take('[') {
                var.size *= self.size()?;
                self.need(']')?;
            }
        }
    }

    fn value(&mut self, ty: Ty) -> Result<u64, Error> {
        match self.operand()? {
            Operand::Int(v) => Ok(v as u64),
            Operand::Float(bits, _) if ty.is_float() => Ok(bits),
            _ => Err(self.err("an initialiser that is not a number is not supported")),
        }
    }

    fn params(&mut self) -> Result<Vec<Var>, Error> {
        let mut out = Vec::new();
        if self.take('(') {
            while !self.take(')') {
                let space = self.word("a parameter")?;
                if space != ".param" {
                    return Err(self.err(format!("a parameter in `{space}` is not supported, `.param` is")));
                }
                out.push(self.var("param")?.0);
                self.take(',');
            }
        }
        Ok(out)
    }

    /// An entry or function; None for a mere prototype.
    fn function(&mut self, entry: bool) -> Result<Option<Function>, Error> {
        let returns = if entry { Vec::new() } else { self.params()? };
        let head = self.line();
        let name = self.word("a name")?;
        let params = self.params()?;
        let mut body = Vec::new();
        while matches!(self.peek(), Some(Tok::Word(w)) if w.starts_with('.')) {
            let line = self.line();
            let w = self.word("a directive")?;
            match w.as_str() {
                ".maxntid" | ".reqntid" => {
                    let mut sizes = vec![Operand::Int(self.int()?)];
                    while self.take(',') {
                        sizes.push(Operand::Int(self.int()?));
                    }
                    body.push((line, Stmt::Instr(None, vec![w], sizes)));
                }
                ".minnctapersm" | ".maxnreg" | ".maxnctapersm" => {
                    self.int()?;
                }
                ".noreturn" => {}
                _ => return Err(self.err(format!("`{w}` is not known before a body"))),
            }
        }
        if self.take(';') {
            return Ok(None);
        }
        self.need('{')?;
        let mut depth = 1;
        loop {
            let line = self.line();
            if self.take('{') {
                depth += 1;
                body.push((line, Stmt::Open));
            } else if self.take('}') {
                depth -= 1;
                if depth == 0 {
                    return Ok(Some(Function { name, entry, returns, params, body, line: head }));
                }
                body.push((line, Stmt::Close));
            } else if !self.take(';') {
                self.statement(&mut body)?;
            }
        }
    }

    fn statement(&mut self, body: &mut Vec<(u32, Stmt)>) -> Result<(), Error> {
        let line = self.line();
        let guard = if self.take('@') {
            let not = self.take('!');
            Some((self.word("a predicate")?, not))
        } else {
            None
        };
        let w = self.word("an instruction")?;
        if guard.is_none() && self.take(':') {
            body.push((line, Stmt::Label(w)));
            return Ok(());
        }
        match w.as_str() {
            ".reg" => {
                let t = self.word("a type")?;
                let ty = Ty::parse(t.trim_start_matches('.'))
                    .ok_or_else(|| self.err(format!("register type `{t}` is not known")))?;
                loop {
                    let name = self.word("a register")?;
                    let count = if self.take('<') {
                        let n = self.size()?;
                        self.need('>')?;
                        Some(
                            u32::try_from(n)
                                .ok()
                                .filter(|n| *n < 1 << 20)
                                .ok_or_else(|| self.err("too many registers"))?,
                        )
                    } else {
                        None
                    };
                    body.push((line, Stmt::Reg(ty, name, count)));
                    if self.take(';') {
                        return Ok(());
                    }
                    self.need(',')?;
                }
            }
            ".shared" | ".local" | ".param" | ".global" | ".const" => {
                self.at -= 1;
                for var in self.vars()? {
                    body.push((line, Stmt::Var(var)));
                }
                return Ok(());
            }
            ".loc" => {
                self.skip_line();
                return Ok(());
            }
            ".pragma" => return self.skip_to_semicolon(),
            _ if w.starts_with('.') => {
                return Err(self.err(format!("directive `{w}` is not known in a body")));
            }
            _ => {}
        }
        let op: Vec<String> = w.split('.').map(String::from).collect();
        if op[0] == "call" {
            let returns = self.names()?;
            if !returns.is_empty() {
                self.need(',')?;
            }
            let name = self.word("a function's name")?;
            let args = if self.take(',') { self.names()? } else { Vec::new() };
            if !self.take(';') {
                return Err(self.err("an indirect call is not supported"));
            }
            body.push((line, Stmt::Call(guard, returns, name, args)));
            return Ok(());
        }
        let mut args = Vec::new();
        while !self.take(';') {
            args.push(self.operand()?);
            if !self.take(',') && self.peek() != Some(&Tok::Mark(';')) {
                return Err(self.err("`,` or `;` was expected after an operand"));
            }
        }
        body.push((line, Stmt::Instr(guard, op, args)));
        Ok(())
    }

    fn names(&mut self) -> Result<Vec<String>, Error> {
        let mut out = Vec::new();
        if self.take('(') {
            while !self.take(')') {
                out.push(self.word("the name of a parameter")?);
                self.take(',');
            }
        }
        Ok(out)
    }

    fn operand(&mut self) -> Result<Operand, Error> {
        if self.take('{') {
            let mut parts = Vec::new();
            while !self.take('}') {
                parts.push(self.operand()?);
                self.take(',');
            }
            return Ok(Operand::Vector(parts));
        }
        if self.take('!') {
            return Ok(Operand::Not(self.word("a predicate")?));
        }
        if self.take('[') {
            let base = match self.peek() {
                Some(Tok::Word(_)) => Some(self.word("an address")?),
                _ => None,
            };
            let off = if base.is_none() || self.take('+') || self.peek() == Some(&Tok::Mark('-')) {
                self.int()?
            } else {
                0
            };
            if !self.take(']') {
                return Err(self.err("this form of address is not supported"));
            }
            let off = i64::try_from(off)
                .or(u64::try_from(off).map(|v| v as i64))
                .map_err(|_| self.err("the offset is too large"))?;
            return Ok(Operand::Addr(base, off));
        }
        if let Some(Tok::Num(n)) = self.peek().cloned() {
            if let Some(bits) = n.strip_prefix("0f").or(n.strip_prefix("0F")) {
                self.at += 1;
                let bits =
                    u64::from_str_radix(bits, 16).map_err(|_| self.err(format!("`{n}` is no float")))?;
                return Ok(Operand::Float(bits, false));
            }
            if let Some(bits) = n.strip_prefix("0d").or(n.strip_prefix("0D")) {
                self.at += 1;
                let bits =
                    u64::from_str_radix(bits, 16).map_err(|_| self.err(format!("`{n}` is no double")))?;
                return Ok(Operand::Float(bits, true));
            }
        }
        if matches!(self.peek(), Some(Tok::Num(_) | Tok::Mark('-'))) {
            return Ok(Operand::Int(self.int()?));
        }
        let name = self.word("an operand")?;
        if self.take('|') {
            return Ok(Operand::Pair(name, self.word("a second result")?));
        }
        if self.take('+') {
            let off = self.int()?;
            return Ok(Operand::Sum(
                name,
                i64::try_from(off).map_err(|_| self.err("the offset is too large"))?,
            ));
        }
        Ok(Operand::Name(name))
    }
}
