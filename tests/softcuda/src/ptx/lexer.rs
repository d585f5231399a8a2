//! PTX text to words, numbers and marks, each with its line.

use crate::fault::Error;

/// One token.
#[derive(Debug, Clone, PartialEq)]
pub enum Tok {
    /// A directive, opcode, register, label or symbol, dots included: `.reg`, `ld.global.f32`, `%tid.x`, `$L__BB0_1`.
    Word(String),
    /// A number as written: `12`, `0x1F`, `0f3F800000`.
    Num(String),
    /// A quoted string, without its quotes.
    Str(String),
    /// Any other character.
    Mark(char),
}

/// A token and the line it stands on, from 1.
#[derive(Debug, Clone)]
pub struct Token {
    /// The token.
    pub tok: Tok,
    /// Its line.
    pub line: u32,
}

fn word_char(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

/// Cuts `text` into tokens; comments are dropped.
pub fn lex(text: &str) -> Result<Vec<Token>, Error> {
    let s = text.as_bytes();
    let (mut i, mut line) = (0, 1u32);
    let mut out = Vec::new();
    while i < s.len() {
        let c = s[i];
        let start = i;
        match c {
            b'\n' => {
                line += 1;
                i += 1;
            }
            0 => i += 1,
            _ if c.is_ascii_whitespace() => i += 1,
            b'/' if s.get(i + 1) == Some(&b'/') => {
                while i < s.len() && s[i] != b'\n' {
                    i += 1;
                }
            }
            b'/' if s.get(i + 1) == Some(&b'*') => {
                i += 2;
                while i < s.len() && !s[i..].starts_with(b"*/") {
                    line += u32::from(s[i] == b'\n');
                    i += 1;
                }
                i += 2;
            }
            b'"' => {
                i += 1;
                while i < s.len() && s[i] != b'"' && s[i] != b'\n' {
                    i += 1;
                }
                if s.get(i) != Some(&b'"') {
                    return Err(Error::ptx(text, line, "a string is not closed on its line"));
                }
                out.push(Token {
                    tok: Tok::Str(String::from_utf8_lossy(&s[start + 1..i]).into_owned()),
                    line,
                });
                i += 1;
            }
            _ if c.is_ascii_digit() => {
                while i < s.len() && word_char(s[i]) {
                    i += 1;
                }
                out.push(Token { tok: Tok::Num(String::from_utf8_lossy(&s[start..i]).into_owned()), line });
            }
            _ if word_char(c) => {
                // `L2::128B` is one word; a label's single colon is a mark.
                while i < s.len() && (word_char(s[i]) || s[i..].starts_with(b"::")) {
                    i += if s[i] == b':' { 2 } else { 1 };
                }
                out.push(Token { tok: Tok::Word(String::from_utf8_lossy(&s[start..i]).into_owned()), line });
            }
            _ if c.is_ascii() => {
                out.push(Token { tok: Tok::Mark(c as char), line });
                i += 1;
            }
            _ => return Err(Error::ptx(text, line, "a character outside ASCII")),
        }
    }
    Ok(out)
}
