//! The models of this machine, and which of them is in use.
//!
//! `model.path` is a link to the model in use. Models lie in the directory `models` beside it, and in that of the packages.
//! Changing the link is one rename: whoever starts a daemon meanwhile finds the old model or the new one.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Where packages put models.
const PACKAGED: &str = "/usr/share/emberd/models";

/// Ends the name of a packed model's file.
const PACKED: &str = "ember";

/// A model that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Model {
    /// Name of the directory, or of the file without its ending.
    pub(super) name: String,
    /// Where it lies.
    pub(super) path: PathBuf,
    /// Whether it is the one in use.
    pub(super) used: bool,
    /// Whether a package brought it.
    pub(super) packaged: bool,
}

/// Why a model cannot be found, used or removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ModelsError {
    /// There is none of that name.
    #[error("{name}: no such model; looked in {places}")]
    Unknown {
        /// The name.
        name: String,
        /// The directories.
        places: String,
    },
    /// `model.path` is not ours to change.
    #[error(
        "{}: is a model itself, not a link to the one in use; move it to {} and take `path` out of the section [model]",
        link.display(), models.display()
    )]
    NoLink {
        /// `model.path`.
        link: PathBuf,
        /// Where models should be.
        models: PathBuf,
    },
    /// It is in use.
    #[error("{0}: is in use; `emberd model use` another one first")]
    Used(String),
    /// It belongs to a package.
    #[error("{}: belongs to a package; remove that", .0.display())]
    Packaged(PathBuf),
    /// The system refused something.
    #[error("{}: cannot {action} it: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// The name under which the model at `path` is known.
pub(super) fn name(path: &Path) -> Option<String> {
    let packed = path.extension().is_some_and(|extension| extension == PACKED);
    let name = if packed { path.file_stem() } else { path.file_name() };
    Some(name?.to_string_lossy().into_owned())
}

/// Where models are.
#[derive(Debug)]
pub(super) struct Models {
    link: PathBuf,
    own: PathBuf,
}

impl Models {
    /// The models around `link`, which is `model.path`.
    pub(super) fn new(link: &Path) -> Models {
        Models { link: link.to_owned(), own: link.with_file_name("models") }
    }

    /// Where a packed model of that name belongs.
    pub(super) fn packed(&self, name: &str) -> PathBuf {
        self.own.join(format!("{name}.{PACKED}"))
    }

    /// All of them, by name; one of our own hides a packaged one of the same name.
    ///
    /// # Errors
    ///
    /// A directory is there and cannot be read.
    pub(super) fn list(&self) -> Result<Vec<Model>, ModelsError> {
        let used = self.link.canonicalize().ok();
        let mut models: Vec<Model> = Vec::new();
        for (dir, packaged) in [(self.own.as_path(), false), (Path::new(PACKAGED), true)] {
            let entries = match std::fs::read_dir(dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(dir, "read")(error)),
            };
            for entry in entries {
                let path = entry.map_err(failed(dir, "read"))?.path();
                let model = path.is_dir() || path.extension().is_some_and(|extension| extension == PACKED);
                let Some(name) = name(&path).filter(|name| model && !name.starts_with('.')) else { continue };
                if !models.iter().any(|model| model.name == name) {
                    let used = used.is_some() && path.canonicalize().ok() == used;
                    models.push(Model { name, path, used, packaged });
                }
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(models)
    }

    /// The model of that name.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn find(&self, name: &str) -> Result<Model, ModelsError> {
        self.list()?.into_iter().find(|model| model.name == name).ok_or_else(|| ModelsError::Unknown {
            name: name.to_owned(),
            places: format!("{} and {PACKAGED}", self.own.display()),
        })
    }

    /// Makes `path` the model in use, in one step. Returns what was in use before, for [`Models::point_to`] to go back.
    ///
    /// # Errors
    ///
    /// `model.path` is no link, or cannot be changed.
    pub(super) fn point_to(&self, path: &Path) -> Result<Option<PathBuf>, ModelsError> {
        let old = match self.link.symlink_metadata() {
            Ok(found) if !found.is_symlink() => {
                return Err(ModelsError::NoLink { link: self.link.clone(), models: self.own.clone() });
            }
            Ok(_) => Some(std::fs::read_link(&self.link).map_err(failed(&self.link, "read"))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(&self.link, "read")(error)),
        };
        let new = self.link.with_file_name(format!(".model.{}", std::process::id()));
        symlink(path, &new).map_err(failed(&self.link, "change"))?;
        std::fs::rename(&new, &self.link).map_err(|error| {
            let _ = std::fs::remove_file(&new);
            failed(&self.link, "change")(error)
        })?;
        Ok(old)
    }

    /// Goes back to what [`Models::point_to`] returned.
    ///
    /// # Errors
    ///
    /// As there.
    pub(super) fn go_back(&self, old: Option<&Path>) -> Result<(), ModelsError> {
        match old {
            Some(old) => self.point_to(old).map(drop),
            None => std::fs::remove_file(&self.link).map_err(failed(&self.link, "remove")),
        }
    }

    /// Deletes a model.
    ///
    /// # Errors
    ///
    /// It is in use, belongs to a package, or cannot be deleted.
    pub(super) fn remove(&self, name: &str) -> Result<PathBuf, ModelsError> {
        let model = self.find(name)?;
        if model.used {
            return Err(ModelsError::Used(model.name));
        }
        if model.packaged {
            return Err(ModelsError::Packaged(model.path));
        }
        let directory = model.path.symlink_metadata().is_ok_and(|found| found.is_dir());
        let removed = if directory { std::fs::remove_dir_all(&model.path) } else { std::fs::remove_file(&model.path) };
        removed.map_err(failed(&model.path, "remove"))?;
        Ok(model.path)
    }
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> ModelsError {
    move |source| ModelsError::Io { path: path.to_owned(), action, source }
}
