//! Files that appear complete or not at all, and the header of those in the safetensors format.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::{Map, Value, json};

/// Writes `path` through a temporary file beside it.
pub fn atomically(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    with_mode(path, 0o666, write)
}

/// As [`atomically`]; nobody but the owner may read the file.
pub fn privately(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    with_mode(path, 0o600, write)
}

/// `mode` holds as far as the process's umask lets it.
fn with_mode(path: &Path, mode: u32, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let temporary = path.with_added_extension(format!("partial-{}", std::process::id()));
    let result = (|| {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        write(&mut out)?;
        out.into_inner()?.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_entry(path)
    })();
    if result.is_err() {
        // Best effort: the error that led here is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// What a file system says that syncs no directories, or lets nobody read this one.
const NOT_THERE: [io::ErrorKind; 3] =
    [io::ErrorKind::PermissionDenied, io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported];

fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Waits until the disk has the name of the file `path`: what follows may delete what it was made of. A directory that cannot be
/// read, or synced, is no reason to fail.
pub fn sync_entry(path: &Path) -> io::Result<()> {
    match File::open(dir_of(path)).and_then(|dir| dir.sync_all()) {
        Err(error) if NOT_THERE.contains(&error.kind()) => Ok(()),
        result => result,
    }
}

/// Bytes that are free for `path` where it is to be.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(dir_of(path))?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

/// Writes the header for tensors `(name, dtype, shape, bytes)` whose data follow in this order without gaps; they begin at a
/// multiple of `align`, itself a multiple of 8.
pub fn header<'a>(
    metadata: Value,
    align: u64,
    tensors: impl Iterator<Item = (&'a str, &'a str, &'a [usize], u64)>,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), metadata)]);
    let mut offset = 0;
    for (name, dtype, shape, bytes) in tensors {
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + bytes]});
        header.insert(name.to_owned(), entry);
        offset += bytes;
    }
    let mut header = Value::Object(header).to_string();
    let end = header.len() + 8;
    header.push_str(&" ".repeat(end.next_multiple_of(align as usize) - end));
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())
}
