/* faults.h - compiled in before manhole.c and manhole_cli.c (cc -include): each place in them that
 * calls what can fail becomes a site, which can be told to fail once. See run.py for what is done
 * with that.
 *
 * A name that is followed by a parenthesis is replaced here, so the headers that declare it come
 * first. What is not in the tables cannot fail with the arguments that we give it
 * (pthread_mutex_lock, sigaction, clock_gettime, PyErr_SetString, ...).
 */
#ifndef FAULTS_H
#define FAULTS_H

#ifdef FAULTS_PYTHON
#  define PY_SSIZE_T_CLEAN
#  include <Python.h>
#  include <frameobject.h>
#endif

#ifndef _GNU_SOURCE
#  define _GNU_SOURCE
#endif

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <pwd.h>
#include <regex.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef HAVE_LIBEDIT
#  include <histedit.h>
#endif

struct fault_site {
    const char *function; /* that is called, */
    const char *caller;   /* where */
    uint32_t line;
} __attribute__((aligned(32)));

/* What fault_at() says: nothing is wrong (0), an errno value, or one of these. */
enum { FAULT_SHORT = -1, FAULT_END = -2 };

/* Counts the call. Async-signal-safe; keeps errno, but for setting it to the errno value. */
int fault_at(const struct fault_site *site);

/* The same for what moves bytes. A connection that is said to be gone is gone. */
int fault_of_bytes(const struct fault_site *site, int fd);

static inline size_t
fault_shorter(size_t size)
{
    return size > 1 ? size / 2 : size;
}

/* clang-format off */
#define FAULT_SITE(name)                                                                 \
  static const struct fault_site site                                                    \
      __attribute__((used, section("fault_sites"))) = {                                  \
          .function = #name, .caller = __func__, .line = __LINE__}

/* Fails: with errno and this value; with the error as its value; with a MemoryError and this value;
 * after the work is done. */
#define FAULTY(name, value, ...)                                                         \
  ({                                                                                     \
      FAULT_SITE(name);                                                                  \
      fault_at(&site) != 0 ? (value) : name(__VA_ARGS__);                                \
  })
#define FAULTY_NUMBER(name, ...)                                                         \
  ({                                                                                     \
      FAULT_SITE(name);                                                                  \
      int fault = fault_at(&site);                                                       \
      fault != 0 ? fault : name(__VA_ARGS__);                                            \
  })
#define FAULTY_PYTHON(name, value, ...)                                                  \
  ({                                                                                     \
      FAULT_SITE(name);                                                                  \
      fault_at(&site) != 0 ? ((void)PyErr_NoMemory(), (value)) : name(__VA_ARGS__);      \
  })
#define FAULTY_AFTERWARDS(name, value, ...)                                              \
  ({                                                                                     \
      FAULT_SITE(name);                                                                  \
      int result = name(__VA_ARGS__);                                                    \
      fault_at(&site) != 0 ? (value) : result;                                           \
  })
/* Moves bytes: fewer than asked for, too, or none, for the other side has closed. */
#define FAULTY_BYTES(name, fd, data, size, ...)                                          \
  ({                                                                                     \
      FAULT_SITE(name);                                                                  \
      int fault = fault_of_bytes(&site, fd);                                             \
      fault > 0            ? (ssize_t)-1                                                 \
      : fault == FAULT_END ? (ssize_t)0                                                  \
      : name(fd, data, fault != 0 ? fault_shorter(size) : (size), ##__VA_ARGS__);        \
  })
/* clang-format on */

/* ---- The C library ------------------------------------------------------------------- */

#define accept4(...) FAULTY(accept4, -1, __VA_ARGS__)
#define bind(...) FAULTY(bind, -1, __VA_ARGS__)
#define calloc(...) FAULTY(calloc, NULL, __VA_ARGS__)
#define close(...) FAULTY_AFTERWARDS(close, -1, __VA_ARGS__)
#define connect(...) FAULTY(connect, -1, __VA_ARGS__)
#define dup2(...) FAULTY(dup2, -1, __VA_ARGS__)
#define el_gets(...) FAULTY(el_gets, NULL, __VA_ARGS__)
#define el_init(...) FAULTY(el_init, NULL, __VA_ARGS__)
#define execlp(...) FAULTY(execlp, -1, __VA_ARGS__)
#define execvp(...) FAULTY(execvp, -1, __VA_ARGS__)
#define fchmod(...) FAULTY(fchmod, -1, __VA_ARGS__)
#define fclose(...) FAULTY_AFTERWARDS(fclose, EOF, __VA_ARGS__)
#define fcntl(...) FAULTY(fcntl, -1, __VA_ARGS__)
#define ferror(...) FAULTY(ferror, 1, __VA_ARGS__)
#define fflush(...) FAULTY_AFTERWARDS(fflush, EOF, __VA_ARGS__)
#define fgets(...) FAULTY(fgets, NULL, __VA_ARGS__)
#define flock(...) FAULTY(flock, -1, __VA_ARGS__)
#define fopen(...) FAULTY(fopen, NULL, __VA_ARGS__)
#define fork(...) FAULTY(fork, -1, __VA_ARGS__)
#define fstat(...) FAULTY(fstat, -1, __VA_ARGS__)
#define ftruncate(...) FAULTY(ftruncate, -1, __VA_ARGS__)
#define getaddrinfo(...) FAULTY(getaddrinfo, EAI_MEMORY, __VA_ARGS__)
#define getline(...) FAULTY(getline, -1, __VA_ARGS__)
#define getpeername(...) FAULTY(getpeername, -1, __VA_ARGS__)
#define getpwuid_r(...) FAULTY_NUMBER(getpwuid_r, __VA_ARGS__)
#define getrandom(...) FAULTY(getrandom, -1, __VA_ARGS__)
#define getrlimit(...) FAULTY(getrlimit, -1, __VA_ARGS__)
#define getsockname(...) FAULTY(getsockname, -1, __VA_ARGS__)
#define getsockopt(...) FAULTY(getsockopt, -1, __VA_ARGS__)
#define glob(...) FAULTY(glob, GLOB_NOSPACE, __VA_ARGS__)
#define history_init(...) FAULTY(history_init, NULL, __VA_ARGS__)
#define ioctl(...) FAULTY(ioctl, -1, __VA_ARGS__)
#define kill(...) FAULTY(kill, -1, __VA_ARGS__)
#define listen(...) FAULTY(listen, -1, __VA_ARGS__)
#define lstat(...) FAULTY(lstat, -1, __VA_ARGS__)
#define malloc(...) FAULTY(malloc, NULL, __VA_ARGS__)
#define memfd_create(...) FAULTY(memfd_create, -1, __VA_ARGS__)
#define mmap(...) FAULTY(mmap, MAP_FAILED, __VA_ARGS__)
#define open(...) FAULTY(open, -1, __VA_ARGS__)
#define opendir(...) FAULTY(opendir, NULL, __VA_ARGS__)
#define pipe2(...) FAULTY(pipe2, -1, __VA_ARGS__)
#define poll(...) FAULTY(poll, -1, __VA_ARGS__)
#define ppoll(...) FAULTY(ppoll, -1, __VA_ARGS__)
#define prctl(...) FAULTY(prctl, -1, __VA_ARGS__)
#define pread(...) FAULTY_BYTES(pread, __VA_ARGS__)
#define pthread_attr_init(...) FAULTY_NUMBER(pthread_attr_init, __VA_ARGS__)
#define pthread_attr_setstacksize(...)                                                   \
  FAULTY_NUMBER(pthread_attr_setstacksize, __VA_ARGS__)
#define pthread_create(...) FAULTY_NUMBER(pthread_create, __VA_ARGS__)
#define pthread_key_create(...) FAULTY_NUMBER(pthread_key_create, __VA_ARGS__)
#define pthread_setspecific(...) FAULTY_NUMBER(pthread_setspecific, __VA_ARGS__)
#define pwrite(...) FAULTY_BYTES(pwrite, __VA_ARGS__)
#define read(...) FAULTY_BYTES(read, __VA_ARGS__)
#define readdir(...) FAULTY(readdir, NULL, __VA_ARGS__)
#define readlink(...) FAULTY(readlink, -1, __VA_ARGS__)
#define realloc(...) FAULTY(realloc, NULL, __VA_ARGS__)
#define recv(...) FAULTY_BYTES(recv, __VA_ARGS__)
#define regcomp(...) FAULTY(regcomp, REG_ESPACE, __VA_ARGS__)
#define send(...) FAULTY_BYTES(send, __VA_ARGS__)
#define setrlimit(...) FAULTY(setrlimit, -1, __VA_ARGS__)
#define setsockopt(...) FAULTY(setsockopt, -1, __VA_ARGS__)
#define shutdown(...) FAULTY_AFTERWARDS(shutdown, -1, __VA_ARGS__)
#define socket(...) FAULTY(socket, -1, __VA_ARGS__)
#define socketpair(...) FAULTY(socketpair, -1, __VA_ARGS__)
#define stat(...) FAULTY(stat, -1, __VA_ARGS__)
#define strdup(...) FAULTY(strdup, NULL, __VA_ARGS__)
#define syscall(...) FAULTY(syscall, -1, __VA_ARGS__)
#define unlink(...) FAULTY(unlink, -1, __VA_ARGS__)
#define vasprintf(...) FAULTY(vasprintf, -1, __VA_ARGS__)
#define waitpid(...) FAULTY(waitpid, -1, __VA_ARGS__)
#define write(...) FAULTY_BYTES(write, __VA_ARGS__)

/* ---- Python's, as when memory has run out ------------------------------------------- */

#ifdef FAULTS_PYTHON

/* They say nothing of why. */
#  define PyDict_GetItemString(...) FAULTY(PyDict_GetItemString, NULL, __VA_ARGS__)
#  define PyMem_Malloc(...) FAULTY(PyMem_Malloc, NULL, __VA_ARGS__)
#  define PyMem_RawCalloc(...) FAULTY(PyMem_RawCalloc, NULL, __VA_ARGS__)
#  define PyMem_RawRealloc(...) FAULTY(PyMem_RawRealloc, NULL, __VA_ARGS__)
#  define PyObject_HasAttrString(...) FAULTY(PyObject_HasAttrString, 0, __VA_ARGS__)
#  define PyThreadState_New(...) FAULTY(PyThreadState_New, NULL, __VA_ARGS__)

#  define FAULTY_OBJECT(name, ...) FAULTY_PYTHON(name, NULL, __VA_ARGS__)
#  define FAULTY_RESULT(name, ...) FAULTY_PYTHON(name, -1, __VA_ARGS__)

/* With "#" in their formats some have another name until 3.12. */
#  ifdef Py_BuildValue
#    define _Py_BuildValue_SizeT(...) FAULTY_OBJECT(_Py_BuildValue_SizeT, __VA_ARGS__)
#  else
#    define Py_BuildValue(...) FAULTY_OBJECT(Py_BuildValue, __VA_ARGS__)
#  endif
#  ifdef PyObject_CallFunction
#    define _PyObject_CallFunction_SizeT(...)                                            \
      FAULTY_OBJECT(_PyObject_CallFunction_SizeT, __VA_ARGS__)
#  else
#    define PyObject_CallFunction(...) FAULTY_OBJECT(PyObject_CallFunction, __VA_ARGS__)
#  endif
#  ifdef PyObject_CallMethod
#    define _PyObject_CallMethod_SizeT(...)                                              \
      FAULTY_OBJECT(_PyObject_CallMethod_SizeT, __VA_ARGS__)
#  else
#    define PyObject_CallMethod(...) FAULTY_OBJECT(PyObject_CallMethod, __VA_ARGS__)
#  endif

#  define PyDescr_NewGetSet(...) FAULTY_OBJECT(PyDescr_NewGetSet, __VA_ARGS__)
#  define PyDescr_NewMethod(...) FAULTY_OBJECT(PyDescr_NewMethod, __VA_ARGS__)
#  define PyDict_Copy(...) FAULTY_OBJECT(PyDict_Copy, __VA_ARGS__)
#  define PyDict_GetItemWithError(...) FAULTY_OBJECT(PyDict_GetItemWithError, __VA_ARGS__)
#  define PyDict_Keys(...) FAULTY_OBJECT(PyDict_Keys, __VA_ARGS__)
#  define PyDict_New(...) FAULTY_OBJECT(PyDict_New, __VA_ARGS__)
#  define PyDict_SetDefault(...) FAULTY_OBJECT(PyDict_SetDefault, __VA_ARGS__)
#  define PyErr_NewExceptionWithDoc(...)                                                 \
    FAULTY_OBJECT(PyErr_NewExceptionWithDoc, __VA_ARGS__)
#  define PyEval_EvalCode(...) FAULTY_OBJECT(PyEval_EvalCode, __VA_ARGS__)
#  define PyFile_FromFd(...) FAULTY_OBJECT(PyFile_FromFd, __VA_ARGS__)
#  define PyImport_AddModuleRef(...) FAULTY_OBJECT(PyImport_AddModuleRef, __VA_ARGS__)
#  define PyImport_GetModule(...) FAULTY_OBJECT(PyImport_GetModule, __VA_ARGS__)
#  define PyImport_Import(...) FAULTY_OBJECT(PyImport_Import, __VA_ARGS__)
#  define PyImport_ImportModule(...) FAULTY_OBJECT(PyImport_ImportModule, __VA_ARGS__)
#  define PyIter_Next(...) FAULTY_OBJECT(PyIter_Next, __VA_ARGS__)
#  define PyList_AsTuple(...) FAULTY_OBJECT(PyList_AsTuple, __VA_ARGS__)
#  define PyList_New(...) FAULTY_OBJECT(PyList_New, __VA_ARGS__)
#  define PyLong_FromLong(...) FAULTY_OBJECT(PyLong_FromLong, __VA_ARGS__)
#  define PyLong_FromSsize_t(...) FAULTY_OBJECT(PyLong_FromSsize_t, __VA_ARGS__)
#  define PyLong_FromUnsignedLong(...) FAULTY_OBJECT(PyLong_FromUnsignedLong, __VA_ARGS__)
#  define PyLong_FromUnsignedLongLong(...)                                               \
    FAULTY_OBJECT(PyLong_FromUnsignedLongLong, __VA_ARGS__)
#  define PyMapping_GetItemString(...) FAULTY_OBJECT(PyMapping_GetItemString, __VA_ARGS__)
#  define PyMethod_New(...) FAULTY_OBJECT(PyMethod_New, __VA_ARGS__)
#  define PyOS_FSPath(...) FAULTY_OBJECT(PyOS_FSPath, __VA_ARGS__)
#  define PyObject_Call(...) FAULTY_OBJECT(PyObject_Call, __VA_ARGS__)
#  define PyObject_CallNoArgs(...) FAULTY_OBJECT(PyObject_CallNoArgs, __VA_ARGS__)
#  define PyObject_CallObject(...) FAULTY_OBJECT(PyObject_CallObject, __VA_ARGS__)
#  define PyObject_CallOneArg(...) FAULTY_OBJECT(PyObject_CallOneArg, __VA_ARGS__)
#  define PyObject_Dir(...) FAULTY_OBJECT(PyObject_Dir, __VA_ARGS__)
#  define PyObject_GenericGetAttr(...) FAULTY_OBJECT(PyObject_GenericGetAttr, __VA_ARGS__)
#  define PyObject_GetAttr(...) FAULTY_OBJECT(PyObject_GetAttr, __VA_ARGS__)
#  define PyObject_GetAttrString(...) FAULTY_OBJECT(PyObject_GetAttrString, __VA_ARGS__)
#  define PyObject_GetItem(...) FAULTY_OBJECT(PyObject_GetItem, __VA_ARGS__)
#  define PyObject_GetIter(...) FAULTY_OBJECT(PyObject_GetIter, __VA_ARGS__)
#  define PyObject_Repr(...) FAULTY_OBJECT(PyObject_Repr, __VA_ARGS__)
#  define PyObject_RichCompare(...) FAULTY_OBJECT(PyObject_RichCompare, __VA_ARGS__)
#  define PyObject_Str(...) FAULTY_OBJECT(PyObject_Str, __VA_ARGS__)
#  define PyObject_Vectorcall(...) FAULTY_OBJECT(PyObject_Vectorcall, __VA_ARGS__)
#  define PySequence_InPlaceConcat(...)                                                  \
    FAULTY_OBJECT(PySequence_InPlaceConcat, __VA_ARGS__)
#  define PySequence_List(...) FAULTY_OBJECT(PySequence_List, __VA_ARGS__)
#  define PySequence_Tuple(...) FAULTY_OBJECT(PySequence_Tuple, __VA_ARGS__)
#  define PySet_New(...) FAULTY_OBJECT(PySet_New, __VA_ARGS__)
#  define PyTuple_New(...) FAULTY_OBJECT(PyTuple_New, __VA_ARGS__)
#  define PyTuple_Pack(...) FAULTY_OBJECT(PyTuple_Pack, __VA_ARGS__)
#  define PyType_FromModuleAndSpec(...)                                                  \
    FAULTY_OBJECT(PyType_FromModuleAndSpec, __VA_ARGS__)
#  define PyUnicode_AsEncodedString(...)                                                 \
    FAULTY_OBJECT(PyUnicode_AsEncodedString, __VA_ARGS__)
#  define PyUnicode_AsUTF8(...) FAULTY_OBJECT(PyUnicode_AsUTF8, __VA_ARGS__)
#  define PyUnicode_AsUTF8AndSize(...) FAULTY_OBJECT(PyUnicode_AsUTF8AndSize, __VA_ARGS__)
#  define PyUnicode_DecodeFSDefault(...)                                                 \
    FAULTY_OBJECT(PyUnicode_DecodeFSDefault, __VA_ARGS__)
#  define PyUnicode_DecodeUTF8(...) FAULTY_OBJECT(PyUnicode_DecodeUTF8, __VA_ARGS__)
#  define PyUnicode_FromFormat(...) FAULTY_OBJECT(PyUnicode_FromFormat, __VA_ARGS__)
#  define PyUnicode_FromString(...) FAULTY_OBJECT(PyUnicode_FromString, __VA_ARGS__)
#  define PyUnicode_InternFromString(...)                                                \
    FAULTY_OBJECT(PyUnicode_InternFromString, __VA_ARGS__)
#  define PyUnicode_Join(...) FAULTY_OBJECT(PyUnicode_Join, __VA_ARGS__)
#  define PyUnicode_Splitlines(...) FAULTY_OBJECT(PyUnicode_Splitlines, __VA_ARGS__)
#  define PyUnicode_Substring(...) FAULTY_OBJECT(PyUnicode_Substring, __VA_ARGS__)
#  define PyWeakref_NewRef(...) FAULTY_OBJECT(PyWeakref_NewRef, __VA_ARGS__)
#  define Py_CompileStringObject(...) FAULTY_OBJECT(Py_CompileStringObject, __VA_ARGS__)

#  define PyDict_Contains(...) FAULTY_RESULT(PyDict_Contains, __VA_ARGS__)
#  define PyDict_DelItemString(...) FAULTY_RESULT(PyDict_DelItemString, __VA_ARGS__)
#  define PyDict_SetItem(...) FAULTY_RESULT(PyDict_SetItem, __VA_ARGS__)
#  define PyDict_SetItemString(...) FAULTY_RESULT(PyDict_SetItemString, __VA_ARGS__)
#  define PyDict_Update(...) FAULTY_RESULT(PyDict_Update, __VA_ARGS__)
#  define PyFile_WriteObject(...) FAULTY_RESULT(PyFile_WriteObject, __VA_ARGS__)
#  define PyList_Append(...) FAULTY_RESULT(PyList_Append, __VA_ARGS__)
#  define PyList_Sort(...) FAULTY_RESULT(PyList_Sort, __VA_ARGS__)
#  define PyModule_AddFunctions(...) FAULTY_RESULT(PyModule_AddFunctions, __VA_ARGS__)
#  define PyModule_AddStringConstant(...)                                                \
    FAULTY_RESULT(PyModule_AddStringConstant, __VA_ARGS__)
#  define PyModule_AddType(...) FAULTY_RESULT(PyModule_AddType, __VA_ARGS__)
#  define PyModule_ExecDef(...) FAULTY_RESULT(PyModule_ExecDef, __VA_ARGS__)
#  define PyObject_AsFileDescriptor(...)                                                 \
    FAULTY_RESULT(PyObject_AsFileDescriptor, __VA_ARGS__)
#  ifndef PyObject_DelAttr /* until 3.12 it is PyObject_SetAttr() */
#    define PyObject_DelAttr(...) FAULTY_RESULT(PyObject_DelAttr, __VA_ARGS__)
#  endif
#  define PyObject_GenericSetAttr(...) FAULTY_RESULT(PyObject_GenericSetAttr, __VA_ARGS__)
#  define PyObject_GetBuffer(...) FAULTY_RESULT(PyObject_GetBuffer, __VA_ARGS__)
#  define PyObject_GetOptionalAttrString(...)                                            \
    FAULTY_RESULT(PyObject_GetOptionalAttrString, __VA_ARGS__)
#  define PyObject_Hash(...) FAULTY_RESULT(PyObject_Hash, __VA_ARGS__)
#  define PyObject_IsTrue(...) FAULTY_RESULT(PyObject_IsTrue, __VA_ARGS__)
#  define PyObject_RichCompareBool(...)                                                  \
    FAULTY_RESULT(PyObject_RichCompareBool, __VA_ARGS__)
#  define PyObject_SetAttr(...) FAULTY_RESULT(PyObject_SetAttr, __VA_ARGS__)
#  define PyObject_SetAttrString(...) FAULTY_RESULT(PyObject_SetAttrString, __VA_ARGS__)
#  define PyObject_Size(...) FAULTY_RESULT(PyObject_Size, __VA_ARGS__)
#  define PySequence_Contains(...) FAULTY_RESULT(PySequence_Contains, __VA_ARGS__)
#  define PySequence_DelItem(...) FAULTY_RESULT(PySequence_DelItem, __VA_ARGS__)
#  define PySet_Add(...) FAULTY_RESULT(PySet_Add, __VA_ARGS__)
#  define PySys_SetObject(...) FAULTY_RESULT(PySys_SetObject, __VA_ARGS__)

#endif /* FAULTS_PYTHON */

#endif
