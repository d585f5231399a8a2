//! PTX text to something a warp can execute: [`lexer`] cuts it into words, [`parser`] makes statements of them, [`decode`] gives every
//! register a row and every instruction its function ([`alu`]), with calls put in place of the functions they name.

pub mod alu;
pub mod decode;
pub mod ir;
pub mod lexer;
pub mod parser;
