//! The arithmetic that takes the time: one trait, one implementation per instruction set.
//!
//! [`contract`] says what a kernel promises, `scalar` is that promise as plain loops, and every other set equals it bit
//! for bit (`conformance` compares them).
//!
//! | set          | needs                            | where             |
//! |--------------|----------------------------------|-------------------|
//! | `avx512vnni` | AVX-512 F, BW, VNNI; AVX2, FMA   | x86_64 servers    |
//! | `avx2`       | AVX2, FMA                        | x86_64 since 2013 |
//! | `neondot`    | dot product instructions         | Cortex-A76 (Pi 5) |
//! | `neon`       | Armv8.0                          | Cortex-A72 (Pi 4) |
//! | `scalar`     | nothing                          | everywhere        |

#[cfg(test)]
mod conformance;
pub mod contract;
mod fine;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod gemv;
pub mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
mod selfcheck;
mod shapes;
#[cfg(target_arch = "x86_64")]
mod x86;

use contract::Kernels;

/// Every set that this project has, on any processor.
const NAMES: [&str; 5] = ["avx512vnni", "avx2", "neondot", "neon", "scalar"];

/// The sets that this CPU can run, the best first; the last is always `scalar`.
pub fn available() -> Vec<&'static dyn Kernels> {
    let mut sets: Vec<&'static dyn Kernels> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        sets.extend(x86::Avx512Vnni::detect().map(|set| set as &dyn Kernels));
        sets.extend(x86::Avx2::detect().map(|set| set as &dyn Kernels));
    }
    #[cfg(target_arch = "aarch64")]
    {
        sets.extend(neon::NeonDot::detect().map(|set| set as &dyn Kernels));
        sets.extend(neon::Neon::detect().map(|set| set as &dyn Kernels));
    }
    sets.push(&scalar::Scalar);
    sets
}

/// The set named `forced` (the value of `EMBERD_KERNELS`), or the best one that this CPU has and that computes there what
/// the scalar one does.
///
/// # Errors
///
/// When there is no set of that name, or this CPU lacks what it needs: a forced set is never replaced by another.
pub fn select(forced: Option<&str>) -> Result<&'static dyn Kernels, UnknownKernels> {
    let sets = available();
    let Some(asked) = forced else {
        return Ok(sets.into_iter().find(|set| selfcheck::agrees(*set)).unwrap_or(&scalar::Scalar));
    };
    sets.iter().copied().find(|set| set.name() == asked).ok_or_else(|| UnknownKernels {
        asked: asked.to_owned(),
        exists: NAMES.contains(&asked),
        available: sets.iter().map(|set| set.name()).collect(),
    })
}

/// `EMBERD_KERNELS` names a set that cannot be had here.
#[derive(Debug, thiserror::Error)]
#[error(
    "EMBERD_KERNELS={asked:?}: {}; expected one of {}, or leave it unset to use {}",
    if *.exists { "this CPU cannot run them" } else { "there are no such kernels" },
    .available.join(", "),
    .available[0]
)]
pub struct UnknownKernels {
    asked: String,
    exists: bool,
    available: Vec<&'static str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_set_comes_first_and_scalar_last() {
        let names: Vec<_> = available().iter().map(|set| set.name()).collect();
        assert_eq!(names.last(), Some(&"scalar"));
        let order: Vec<_> = NAMES.into_iter().filter(|name| names.contains(name)).collect();
        assert_eq!(names, order);
        assert_eq!(select(None).map(|set| set.name()).ok(), names.first().copied());
    }

    #[test]
    fn every_available_set_can_be_forced() {
        for set in available() {
            assert_eq!(select(Some(set.name())).map(|set| set.name()).ok(), Some(set.name()));
        }
    }

    #[test]
    fn what_cannot_be_had_is_an_error_and_not_a_fallback() {
        let message = |name| select(Some(name)).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message("altivec").contains("no such kernels"), "{}", message("altivec"));
        assert!(message("").contains("no such kernels"));
        assert!(message("AVX2").contains("no such kernels"));
        let names: Vec<_> = available().iter().map(|set| set.name()).collect();
        for absent in NAMES.into_iter().filter(|name| !names.contains(name)) {
            assert!(message(absent).contains("this CPU cannot run them"), "{}", message(absent));
            assert!(message(absent).contains(&names.join(", ")), "{}", message(absent));
        }
    }
}
