//! Why the process could not start or go on, as an exit code that scripts can tell apart. The README lists them.

use std::{fmt, process::ExitCode};

/// A failure with the message for a person and the code for a script.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub message: String,
}

impl Failure {
    /// Anything without a code of its own.
    pub const OTHER: u8 = 1;
    /// The command line (clap's own code) or the configuration is wrong.
    pub const USAGE: u8 = 2;
    pub const PORT_TAKEN: u8 = 10;
    pub const DATA_LOCKED: u8 = 11;
    pub const DATA_NEWER: u8 = 12;
    pub const DATA_CORRUPT: u8 = 13;
    /// Read-only, no permission, or full.
    pub const DATA_NOT_WRITABLE: u8 = 14;

    /// Cassandra does not answer.
    pub const STORE_UNAVAILABLE: u8 = 15;
    /// Cassandra, or its keyspace, is set up in a way that cannot be used.
    pub const STORE_REFUSED: u8 = 16;

    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
