//! The data directory: who holds it, and which format it is in.
//!
//! ```text
//! LOCK          held with an OS lock by the one process that has the store open
//! FORMAT        one line: "perdure-store N"
//! CREATED       since the tables have been made for the first time: from then on they must be there
//! tables.redb   everything but the logs
//! log/          session logs
//! ```

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
};

/// The format that this binary writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
const FORMAT_PREFIX: &str = "perdure-store ";
const LOCK_FILE: &str = "LOCK";
const FORMAT_FILE: &str = "FORMAT";
const CREATED_FILE: &str = "CREATED";
const TABLES_FILE: &str = "tables.redb";
const LOG_DIRECTORY: &str = "log";

/// Why a store cannot be opened, by what its operator must do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is in use by another process{}: stop that one, or choose another directory", .directory.display(), holder(.pid))]
    Locked { directory: PathBuf, pid: Option<u32> },
    #[error("{} has store format {found}, and this binary knows formats up to {FORMAT}: use a newer binary", .directory.display())]
    NewerFormat { directory: PathBuf, found: u32 },
    #[error("{} is not empty and holds no Perdure store: choose another directory", .directory.display())]
    NotAStore { directory: PathBuf },
    #[error("the store in {} is damaged: {detail}", .directory.display())]
    Corrupt { directory: PathBuf, detail: String },
    #[error("{} cannot be written: {detail}", .directory.display())]
    ReadOnly { directory: PathBuf, detail: String },
    #[error("the disk of {} is full: {detail}", .directory.display())]
    DiskFull { directory: PathBuf, detail: String },
    #[error("{} cannot be opened: {detail}", .directory.display())]
    Io { directory: PathBuf, detail: String },
}

fn holder(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

impl OpenError {
    pub(super) fn from_io(directory: &Path, error: &io::Error) -> Self {
        let (directory, detail) = (directory.to_owned(), error.to_string());
        match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { directory, detail },
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::DiskFull { directory, detail },
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => Self::Corrupt { directory, detail },
            _ => Self::Io { directory, detail },
        }
    }

    pub(super) fn corrupt(directory: &Path, detail: impl ToString) -> Self {
        Self::Corrupt { directory: directory.to_owned(), detail: detail.to_string() }
    }
}

/// Whether trying again is of no use before somebody has tended to the disk.
pub(super) fn refuses_writes(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::FileTooLarge
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::PermissionDenied
    )
}

/// Makes names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

/// A locked data directory of a known format. The lock ends with this value.
#[derive(Debug)]
pub(super) struct DataDirectory {
    path: PathBuf,
    _lock: File,
}

impl DataDirectory {
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |error: io::Error| OpenError::from_io(path, &error);
        fs::create_dir_all(path).map_err(io)?;
        let lock = lock(path)?;
        let this = Self { path: path.to_owned(), _lock: lock };
        match fs::read_to_string(path.join(FORMAT_FILE)) {
            Ok(text) => this.check_format(&text)?,
            Err(error) if error.kind() == ErrorKind::NotFound => this.initialize()?,
            Err(error) => return Err(io(error)),
        }
        fs::create_dir_all(this.log()).map_err(io)?;
        sync_directory(path).map_err(io)?;
        Ok(this)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn log(&self) -> PathBuf {
        self.path.join(LOG_DIRECTORY)
    }

    pub fn tables(&self) -> PathBuf {
        self.path.join(TABLES_FILE)
    }

    /// Whether the tables must be there: once made, they never go, and a log is nothing without them.
    pub fn was_created(&self) -> bool {
        self.path.join(CREATED_FILE).exists()
            || fs::read_dir(self.log()).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Says, durably, that the tables are there. A crash before it makes the next opening say it.
    pub fn set_created(&self) -> Result<(), OpenError> {
        let io = |error: io::Error| OpenError::from_io(&self.path, &error);
        let path = self.path.join(CREATED_FILE);
        if path.exists() {
            return Ok(());
        }
        File::create(&path).and_then(|file| file.sync_all()).map_err(io)?;
        sync_directory(&self.path).map_err(io)
    }

    fn check_format(&self, text: &str) -> Result<(), OpenError> {
        let found = text.strip_prefix(FORMAT_PREFIX).and_then(|rest| rest.trim_end().parse::<u32>().ok());
        match found {
            Some(0) | None => Err(OpenError::corrupt(&self.path, format!("{FORMAT_FILE} reads {text:?}"))),
            Some(found) if found > FORMAT => Err(OpenError::NewerFormat { directory: self.path.clone(), found }),
            Some(_) => Ok(()),
        }
    }

    /// FORMAT comes first, so that a directory without it is either empty or not ours.
    fn initialize(&self) -> Result<(), OpenError> {
        let io = |error: io::Error| OpenError::from_io(&self.path, &error);
        let draft = self.path.join("FORMAT.new");
        for entry in fs::read_dir(&self.path).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path != draft && path != self.path.join(LOCK_FILE) {
                return Err(OpenError::NotAStore { directory: self.path.clone() });
            }
        }
        let mut file = File::create(&draft).map_err(io)?;
        file.write_all(format!("{FORMAT_PREFIX}{FORMAT}\n").as_bytes()).map_err(io)?;
        file.sync_all().map_err(io)?;
        fs::rename(&draft, self.path.join(FORMAT_FILE)).map_err(io)
    }
}

fn lock(directory: &Path) -> Result<File, OpenError> {
    let io = |error: io::Error| OpenError::from_io(directory, &error);
    let path = directory.join(LOCK_FILE);
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // Only for the message.
            let _ = file.read_to_string(&mut text);
            return Err(OpenError::Locked { directory: directory.to_owned(), pid: text.trim().parse().ok() });
        }
        Err(TryLockError::Error(error)) => return Err(io(error)),
    }
    file.set_len(0).map_err(io)?;
    writeln!(file, "{}", std::process::id()).map_err(io)?;
    Ok(file)
}
