//! `vmrouter demo`.
