//! A small Linux guest out of Debian packages: the cloud kernel, busybox, and the programs asked for.
//!
//! 1. `packages` finds the packages and what they need, downloads them with `apt-get download` (no root needed)
//!    and unpacks them with `dpkg-deb` into one folder of the cache.
//! 2. `contents` writes the kernel's first file system: busybox, the virtio modules, the programs with their
//!    shared libraries, and `init.sh`.
//! 3. The result is kept under a name made from what was asked; the next call finds it there. Remove the cache
//!    folder to fetch newer packages.

mod contents;
mod packages;

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

/// Part of every cached image's name; changed when the same request would give another image.
const FORMAT: u32 = 4;

/// A program that a Debian package holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DebianProgram {
    /// Package that has it.
    pub package: &'static str,
    /// Path in the package and in the guest, without a slash in front.
    pub path: &'static str,
}

/// What the guest holds beside busybox.
#[derive(Clone, Debug, Default, Hash)]
pub struct Contents {
    /// Programs of Debian packages.
    pub debian: Vec<DebianProgram>,
    /// Programs of this machine, copied to `/usr/bin` with their shared libraries.
    pub local: Vec<PathBuf>,
}

/// A kernel and its first file system, for a VMM's direct boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestImage {
    /// `bzImage`.
    pub kernel: PathBuf,
    /// cpio archive.
    pub initrd: PathBuf,
}

/// Why no guest could be built.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// `apt-cache` does not know the package.
    #[error(
        "Debian package {package} is not known here: run `apt-get update`, and check that the sources name Debian"
    )]
    NoSuchPackage {
        /// Its name.
        package: String,
    },
    /// The package was found but not fetched.
    #[error("Debian package {package} could not be downloaded: {said}")]
    Download {
        /// Its name, or several.
        package: String,
        /// What `apt-get` said.
        said: String,
    },
    /// The package has no such file.
    #[error("Debian package {package} has no {path}")]
    NotInPackage {
        /// Its name.
        package: String,
        /// What was looked for.
        path: String,
    },
    /// A program needs a library that neither the packages nor this machine have.
    #[error("{program} needs the library {library}, which was not found")]
    NoLibrary {
        /// The program.
        program: PathBuf,
        /// The library's name.
        library: String,
    },
    /// A tool of this machine could not be started, or failed.
    #[error("`{command}` failed: {said}")]
    Tool {
        /// The command line.
        command: String,
        /// What it said, or why it did not start.
        said: String,
    },
    /// A file of the cache, or a program to copy.
    #[error("{}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl GuestImage {
    /// Finds the image in `cache`, or builds it there. `progress` hears what is being done, one short line a step.
    ///
    /// Several processes may call this at once with the same folder: one builds, the others wait for it.
    ///
    /// # Errors
    /// [`ImageError`] names the package, library, tool or file that is missing.
    pub fn build(
        cache: &Path,
        contents: &Contents,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Self, ImageError> {
        fs::create_dir_all(cache).map_err(at(cache))?;
        let lock_path = cache.join("lock");
        let lock = File::create(&lock_path).map_err(at(&lock_path))?;
        lock.lock().map_err(at(&lock_path))?;

        let folder = cache.join(format!("image-{:016x}", key(contents)?));
        let image = Self { kernel: folder.join("vmlinuz"), initrd: folder.join("initrd") };
        // The initrd is renamed into place last, so that it is there only when everything is.
        if image.initrd.exists() {
            return Ok(image);
        }
        let tree = packages::unpack(cache, contents, progress)?;
        progress("writing the guest's first file system");
        let archive = contents::archive(&tree, contents)?;
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        fs::copy(&tree.kernel, &image.kernel).map_err(at(&tree.kernel))?;
        let unfinished = folder.join("initrd.new");
        fs::write(&unfinished, archive).map_err(at(&unfinished))?;
        fs::rename(&unfinished, &image.initrd).map_err(at(&image.initrd))?;
        Ok(image)
    }
}

/// Same contents, same key; a local program counts with its size and time of change.
fn key(contents: &Contents) -> Result<u64, ImageError> {
    let mut hasher = DefaultHasher::new();
    (FORMAT, contents, include_str!("init.sh")).hash(&mut hasher);
    for path in &contents.local {
        let meta = fs::metadata(path).map_err(at(path))?;
        (meta.len(), meta.modified().map_err(at(path))?).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// Names `path` in an I/O error.
fn at(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::File { path, source }
}
