package hooks

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// shell is a command for the command interpreter, which wants its line as it is: between
// quotes, of which /S has it take away the outer ones alone. /D keeps from it what its
// user has set up for every prompt.
func shell(text string) *exec.Cmd {
	dir, err := windows.GetSystemDirectory()
	cmd := exec.Command(filepath.Join(dir, "cmd.exe"))
	if err != nil {
		cmd.Err = fmt.Errorf("find the system's folder: %w", err)
	}
	cmd.Dir = filepath.VolumeName(dir) + `\`
	cmd.SysProcAttr = &syscall.SysProcAttr{CmdLine: `cmd.exe /D /S /C "` + text + `"`, CreationFlags: windows.CREATE_SUSPENDED}
	return cmd
}

// tree is a command with all that it starts: the job object that holds them.
type tree windows.Handle

// launch starts a command. It does nothing before it is in its job, so that all that it
// starts is, too.
func launch(cmd *exec.Cmd) (tree, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return 0, fmt.Errorf("make a job object for it: %w", err)
	}
	if err := cmd.Start(); err != nil {
		windows.CloseHandle(job)
		return 0, err
	}
	failed := cmd.Process.WithHandle(func(process uintptr) {
		err = windows.AssignProcessToJobObject(job, windows.Handle(process))
	})
	switch {
	case failed != nil:
		err = failed
	case err != nil:
		err = fmt.Errorf("put it into a job object: %w", err)
	default:
		err = resume(uint32(cmd.Process.Pid))
	}
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		windows.CloseHandle(job)
		return 0, err
	}
	return tree(job), nil
}

// resume lets a process run that was started suspended.
func resume(process uint32) error {
	list, err := windows.CreateToolhelp32Snapshot(windows.TH32CS_SNAPTHREAD, 0)
	if err != nil {
		return fmt.Errorf("list the system's threads: %w", err)
	}
	defer windows.CloseHandle(list)
	e := windows.ThreadEntry32{Size: uint32(unsafe.Sizeof(windows.ThreadEntry32{}))}
	for err = windows.Thread32First(list, &e); err == nil; err = windows.Thread32Next(list, &e) {
		if e.OwnerProcessID != process {
			continue
		}
		thread, err := windows.OpenThread(windows.THREAD_SUSPEND_RESUME, false, e.ThreadID)
		if err != nil {
			return fmt.Errorf("open its thread: %w", err)
		}
		defer windows.CloseHandle(thread)
		if _, err := windows.ResumeThread(thread); err != nil {
			return fmt.Errorf("resume its thread: %w", err)
		}
		return nil // it has no other yet
	}
	return fmt.Errorf("find its thread: %w", err)
}

// end ends it. There is no soft way.
func (t tree) end(bool) { windows.TerminateJobObject(windows.Handle(t), 1) }

// release is called when the command has ended. What it has left goes on.
func (t tree) release() { windows.CloseHandle(windows.Handle(t)) }
