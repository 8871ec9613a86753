//! How long a thread's turns on a processor are.

use std::io;

/// A short turn on a processor, in nanoseconds, where 2 to 4 ms are usual.
/// Since Linux 6.12 who asks for less is let in sooner; its share stays the same. It is the
/// shortest that the kernel takes.
pub(crate) const SHORT_NS: u64 = 100_000;

/// How the kernel schedules the calling thread.
#[allow(unsafe_code)]
pub(crate) fn schedule() -> io::Result<libc::sched_attr> {
    // SAFETY: the struct is of plain numbers, for which zeros are values.
    let mut schedule: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: the kernel writes at most `size` bytes into the struct, which lives until it returns.
    let done = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut schedule, size, 0) };
    if done == 0 {
        Ok(schedule)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Asks for short turns of the calling thread, and of no process or thread that it starts.
/// What the operator chose, a niceness or another policy, stays.
pub(crate) fn shorten() -> io::Result<()> {
    let mut schedule = schedule()?;
    if schedule.sched_policy != libc::SCHED_OTHER.cast_unsigned() {
        return Ok(());
    }
    schedule.sched_flags = u64::from(libc::SCHED_FLAG_RESET_ON_FORK.cast_unsigned());
    schedule.sched_runtime = SHORT_NS;
    set(&schedule)
}

/// Has the kernel schedule the calling thread so.
#[allow(unsafe_code)]
fn set(schedule: &libc::sched_attr) -> io::Result<()> {
    // SAFETY: the kernel only reads the struct, which says its size itself.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *schedule, 0) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// How a thread is scheduled for which somebody chose so before.
    fn shortened(choice: fn(&mut libc::sched_attr)) -> libc::sched_attr {
        let thread = thread::spawn(move || {
            let mut chosen = schedule().unwrap();
            choice(&mut chosen);
            set(&chosen).unwrap();
            shorten().unwrap();
            schedule().unwrap()
        });
        thread.join().unwrap()
    }

    #[test]
    fn what_the_operator_chose_stays() {
        assert_eq!(shortened(|chosen| chosen.sched_nice = 3).sched_nice, 3);
        let batch = libc::SCHED_BATCH.cast_unsigned();
        let told = shortened(|chosen| chosen.sched_policy = libc::SCHED_BATCH.cast_unsigned());
        assert_eq!(told.sched_policy, batch);
    }
}
