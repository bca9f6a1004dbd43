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

/// Writes `size` bytes at a time, each at a multiple of that, and the rest in the end.
#[must_use = "the last bytes are written by `finish`"]
pub struct Blocks<W> {
    /// Where they go; it has the whole blocks of what was written so far.
    pub out: W,
    block: Vec<u8>,
    size: usize,
}

impl<W: Write> Blocks<W> {
    /// Nothing written yet, nor to `out`; `size` is not 0.
    pub fn new(out: W, size: usize) -> Blocks<W> {
        Blocks { out, block: Vec::with_capacity(size), size }
    }

    /// The next bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.block.len() + bytes.len() >= self.size {
            let (fits, rest) = bytes.split_at(self.size - self.block.len());
            self.block.extend_from_slice(fits);
            self.out.write_all(&self.block)?;
            self.block.clear();
            bytes = rest;
        }
        self.block.extend_from_slice(bytes);
        Ok(())
    }

    /// The last bytes.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&self.block)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The writes that it gets.
    #[derive(Default)]
    struct Writes(Vec<Vec<u8>>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn blocks_are_whole_but_for_the_last() {
        for pieces in [&[][..], &[8], &[0, 7, 1, 9, 25], &[25, 3, 4], &[3, 29], &[16, 16]] {
            let total = pieces.iter().sum::<usize>();
            let bytes: Vec<u8> = (0..total).map(|i| i as u8).collect();
            let mut writes = Writes::default();
            let (mut blocks, mut at) = (Blocks::new(&mut writes, 8), 0);
            for &len in pieces {
                blocks.write(&bytes[at..at + len]).unwrap();
                at += len;
            }
            blocks.finish().unwrap();
            assert_eq!(writes.0.concat(), bytes, "{pieces:?}");
            assert!(writes.0.iter().take(total / 8).all(|write| write.len() == 8), "{pieces:?}");
        }
    }
}
