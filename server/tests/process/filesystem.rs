//! File systems to break: a small one in memory, where the tests may mount one.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;

pub fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    output.stdout.trim_ascii() == b"0"
}

/// A file system of its own, until it is dropped.
pub struct Mounted(TempDir);

impl Mounted {
    /// `None` where this is not allowed.
    pub fn tmpfs(size: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        mount(&["-t", "tmpfs", "-o", &options, "tmpfs"], directory.path()).then_some(Self(directory))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn remount(&self, options: &str) {
        assert!(mount(&["-o", &format!("remount,{options}")], self.path()));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a process that was killed may still be on its way out.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn mount(arguments: &[&str], on: &Path) -> bool {
    let mount = Command::new("mount").args(arguments).arg(on).stderr(Stdio::null()).status();
    mount.is_ok_and(|status| status.success())
}
