/* arrowquant._core: the CPython face of arrowquant.h, on the stable ABI of CPython 3.11.
 *
 * What lies here: types that own C memory (Config, Context, Array, QuantizedTensor, Model, Plan), the
 * long calls with the GIL released, and the command-line tool's main. What Python says better (keyword
 * arguments, the classes of ArrowQuant V2, asyncio, executors) is in the package's .py files.
 *
 * Memory that others may see (buffers, DLPack, Arrow) is held by a Block with an atomic count of its
 * own, so that whoever gives it back needs neither the GIL nor this interpreter. Threads that are
 * started here and by the library never touch Python; the one that Python called waits for them. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifndef ARROWQUANT_STATIC
#  define ARROWQUANT_STATIC
#endif
#define main aq_tool_main /* the tool, as it is; brings the implementation with it */
#include "../examples/aq.c"
#undef main

#include <stdint.h>

#if defined(_MSC_VER)
#  include <intrin.h>
#  define ATOMIC_ADD(p, n) (_InterlockedExchangeAdd((p), (n)) + (n))
#  define ATOMIC_GET(p) _InterlockedOr((p), 0)
#else
#  define ATOMIC_ADD(p, n) __atomic_add_fetch((p), (n), __ATOMIC_ACQ_REL)
#  define ATOMIC_GET(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#endif

#define RANK_MAX 32
#define ALIGNMENT 64u
#define INLINE_WEIGHTS ((uint64_t)1 << 18) /* so few are done before a thread has started */
#define POLL_MICROSECONDS 20000
#define WATCH_SECONDS 0.1
#define LOOK_EACH 65536 /* elements between two looks at signals or cancellation */
#define NO_THREAD ((unsigned long)-1) /* PYTHREAD_INVALID_THREAD_ID, which the stable ABI lacks */

/* ================================================================ module state */

typedef struct State {
    PyTypeObject *config, *context, *array, *quantized, *model, *plan, *observer;
} State;

static State *state_of(PyObject *module) { return (State *)PyModule_GetState(module); }

/* Of an object whose type is one of ours and cannot be subclassed. */
static State *state_of_object(PyObject *self) { return (State *)PyType_GetModuleState(Py_TYPE(self)); }

static void free_instance(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *new_instance(PyTypeObject *type) {
    allocfunc make = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    return make(type, 0);
}

/* ================================================================ errors */

/* The exception for an error, as arrowquant._errors makes it. */
static PyObject *exception_of(const aq_error *err) {
    PyObject *module = PyImport_ImportModule("arrowquant._errors"), *made = NULL, *message, *tensor;
    if (!module) return NULL;
    message = PyUnicode_DecodeUTF8(err->message, (Py_ssize_t)strlen(err->message), "replace");
    tensor = PyUnicode_DecodeUTF8(err->tensor, (Py_ssize_t)strlen(err->tensor), "replace");
    if (message && tensor)
        made = PyObject_CallMethod(module, "make", "sOsOK", aq_status_name(err->status), message,
                                   aq_status_hint(err->status), tensor,
                                   (unsigned long long)err->offset);
    Py_XDECREF(message);
    Py_XDECREF(tensor);
    Py_DECREF(module);
    return made;
}

static PyObject *raise_error(const aq_error *err) {
    PyObject *made = exception_of(err);
    if (made) {
        PyErr_SetObject((PyObject *)Py_TYPE(made), made);
        Py_DECREF(made);
    }
    return NULL;
}

static void clear_error(aq_error *err, aq_status status) {
    memset(err, 0, sizeof *err);
    err->status = status;
}

/* JSON or YAML text of the library as str. */
static PyObject *take_text(aq_context *context, char *text, size_t size) {
    PyObject *made = PyUnicode_DecodeUTF8(text, (Py_ssize_t)size, "replace");
    aq_text_free(context, text, size);
    return made;
}

/* ================================================================ memory */

/* Memory, an opened model or somebody's Arrow array, that lives as long as somebody looks at it. */
typedef struct Block {
    long count;
    void *memory;
    aq_model *model;
    aq_context *context; /* of the model */
    struct ArrowArray arrow;
} Block;

static Block *block_new(void *memory) {
    Block *block = (Block *)calloc(1, sizeof *block);
    if (!block) return NULL;
    block->count = 1;
    block->memory = memory;
    return block;
}

static void *aligned_memory(size_t size) {
    unsigned char *memory;
    size_t shift;
    if (size > SIZE_MAX - 2 * ALIGNMENT) return NULL;
    memory = (unsigned char *)malloc(size + 2 * ALIGNMENT);
    if (!memory) return NULL;
    shift = ALIGNMENT - (size_t)((uintptr_t)memory % ALIGNMENT); /* 1 … 64: there is a byte before */
    memory[shift - 1] = (unsigned char)shift;
    return memory + shift;
}

static void aligned_free(void *memory) {
    unsigned char *start = (unsigned char *)memory;
    if (start) free(start - start[-1]);
}

static void block_retain(Block *block) { (void)ATOMIC_ADD(&block->count, 1); }

static void block_release(Block *block) {
    if (!block || ATOMIC_ADD(&block->count, -1) != 0) return;
    aq_model_close(block->model);
    aq_context_destroy(block->context);
    aligned_free(block->memory);
    if (block->arrow.release) block->arrow.release(&block->arrow);
    free(block);
}

/* ================================================================ dtypes */

typedef struct DtypeRow {
    aq_dtype dtype;
    const char *name;   /* as NumPy and ml_dtypes have it */
    const char *format; /* of the buffer protocol; BF16 and FP8 show their bits */
    const char *arrow;
    uint8_t dl_code, dl_bits; /* bits 0: DLPack has none */
} DtypeRow;

static const DtypeRow dtype_rows[] = {
    { AQ_DTYPE_F64, "float64", "d", "g", 2, 64 },
    { AQ_DTYPE_F32, "float32", "f", "f", 2, 32 },
    { AQ_DTYPE_F16, "float16", "e", "e", 2, 16 },
    { AQ_DTYPE_BF16, "bfloat16", "H", "S", 4, 16 },
    { AQ_DTYPE_F8_E4M3, "float8_e4m3fn", "B", "C", 0, 0 },
    { AQ_DTYPE_F8_E5M2, "float8_e5m2", "B", "C", 0, 0 },
    { AQ_DTYPE_I64, "int64", "q", "l", 0, 64 },
    { AQ_DTYPE_I32, "int32", "i", "i", 0, 32 },
    { AQ_DTYPE_I16, "int16", "h", "s", 0, 16 },
    { AQ_DTYPE_I8, "int8", "b", "c", 0, 8 },
    { AQ_DTYPE_U64, "uint64", "Q", "L", 1, 64 },
    { AQ_DTYPE_U32, "uint32", "I", "I", 1, 32 },
    { AQ_DTYPE_U16, "uint16", "H", "S", 1, 16 },
    { AQ_DTYPE_U8, "uint8", "B", "C", 1, 8 },
    { AQ_DTYPE_BOOL, "bool", "?", "C", 6, 8 },
};

static const DtypeRow *dtype_row(aq_dtype dtype) {
    size_t i;
    for (i = 0; i < sizeof dtype_rows / sizeof dtype_rows[0]; i++)
        if (dtype_rows[i].dtype == dtype) return &dtype_rows[i];
    return NULL;
}

static const DtypeRow *dtype_named(const char *name) {
    size_t i;
    for (i = 0; i < sizeof dtype_rows / sizeof dtype_rows[0]; i++)
        if (strcmp(dtype_rows[i].name, name) == 0) return &dtype_rows[i];
    return NULL;
}

/* "float32", "f32" or "F32": of what a tensor can be dequantized to. */
static int dtype_converter(PyObject *object, void *out) {
    static const struct { const char *name; aq_dtype dtype; } names[] = {
        { "float32", AQ_DTYPE_F32 }, { "float16", AQ_DTYPE_F16 }, { "bfloat16", AQ_DTYPE_BF16 },
        { "f32", AQ_DTYPE_F32 },     { "f16", AQ_DTYPE_F16 },     { "bf16", AQ_DTYPE_BF16 },
        { "F32", AQ_DTYPE_F32 },     { "F16", AQ_DTYPE_F16 },     { "BF16", AQ_DTYPE_BF16 },
    };
    PyObject *text = PyObject_Str(object);
    const char *word = text ? PyUnicode_AsUTF8AndSize(text, NULL) : NULL, *dot;
    size_t i;
    if (!word) {
        Py_XDECREF(text);
        return 0;
    }
    dot = strrchr(word, '.'); /* torch.float16 */
    for (i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i].name, dot ? dot + 1 : word) != 0) continue;
        *(aq_dtype *)out = names[i].dtype;
        Py_DECREF(text);
        return 1;
    }
    PyErr_Format(PyExc_ValueError, "dtype: expected float32, float16 or bfloat16, found %R", object);
    Py_DECREF(text);
    return 0;
}

static void widen_to(aq_dtype dtype, const void *in, aq_dtype to, void *out, size_t count) {
    float part[1024];
    size_t done, step, from_size = aq_dtype_size(dtype), to_size = aq_dtype_size(to);
    for (done = 0; done < count; done += step) {
        step = count - done < 1024 ? count - done : 1024;
        aq_to_f32(NULL, dtype, (const char *)in + done * from_size, part, step);
        aq_from_f32(NULL, to, part, (char *)out + done * to_size, step);
    }
}

/* ================================================================ DLPack */

typedef struct DLDevice {
    int32_t type, id;
} DLDevice;

typedef struct DLType {
    uint8_t code, bits;
    uint16_t lanes;
} DLType;

typedef struct DLTensor {
    void *data;
    DLDevice device;
    int32_t ndim;
    DLType dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} DLTensor;

typedef struct DLManaged {
    DLTensor tensor;
    void *owner;
    void (*deleter)(struct DLManaged *);
} DLManaged;

typedef struct DLVersioned {
    struct {
        uint32_t major, minor;
    } version;
    void *owner;
    void (*deleter)(struct DLVersioned *);
    uint64_t flags;
    DLTensor tensor;
} DLVersioned;

enum { DL_CPU = 1, DL_CUDA_HOST = 3, DL_ROCM_HOST = 11, DL_CUDA_MANAGED = 13 };
enum { DL_READ_ONLY = 1, DL_COPIED = 2 };

/* An exported tensor: what the consumer gets, and the block that it keeps. */
typedef struct DLExport {
    union {
        DLManaged plain;
        DLVersioned versioned;
    } u;
    Block *block;
    int64_t dims[2 * RANK_MAX];
} DLExport;

static void dl_free_plain(DLManaged *managed) {
    DLExport *export_ = (DLExport *)managed->owner;
    block_release(export_->block);
    free(export_);
}

static void dl_free_versioned(DLVersioned *managed) {
    DLExport *export_ = (DLExport *)managed->owner;
    block_release(export_->block);
    free(export_);
}

/* A capsule that nobody took. */
static void dl_capsule_free(PyObject *capsule) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (PyCapsule_IsValid(capsule, "dltensor")) {
        DLManaged *managed = (DLManaged *)PyCapsule_GetPointer(capsule, "dltensor");
        managed->deleter(managed);
    } else if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        DLVersioned *managed = (DLVersioned *)PyCapsule_GetPointer(capsule, "dltensor_versioned");
        managed->deleter(managed);
    }
    PyErr_Restore(type, value, trace);
}

/* ================================================================ Arrow */

/* One level of a tensor seen as nested fixed-size lists, innermost the elements. */
typedef struct ArrowLevel {
    struct ArrowSchema schema, *schema_child;
    struct ArrowArray array, *array_child;
    char format[32];
    const void *buffers[2];
    Block *block;
} ArrowLevel;

static void level_free_schema(struct ArrowSchema *schema) {
    ArrowLevel *level = (ArrowLevel *)schema->private_data;
    struct ArrowSchema *child = level->schema_child;
    schema->release = NULL;
    if (child) {
        if (child->release) child->release(child);
        free(child);
    }
    free(level);
}

static void level_free_array(struct ArrowArray *array) {
    ArrowLevel *level = (ArrowLevel *)array->private_data;
    struct ArrowArray *child = level->array_child;
    array->release = NULL;
    if (child) {
        if (child->release) child->release(child);
        free(child);
    }
    block_release(level->block);
    free(level);
}

static bool level_schema(const DtypeRow *row, int ndim, const Py_ssize_t *shape,
                         struct ArrowSchema *out) {
    ArrowLevel *level = (ArrowLevel *)calloc(1, sizeof *level);
    if (!level) return false;
    memset(out, 0, sizeof *out);
    if (ndim > 1) {
        level->schema_child = (struct ArrowSchema *)calloc(1, sizeof *level->schema_child);
        if (!level->schema_child ||
            !level_schema(row, ndim - 1, shape + 1, level->schema_child)) {
            free(level->schema_child);
            free(level);
            return false;
        }
        level->schema_child->name = "item";
        aq_format(level->format, sizeof level->format, "+w:%lld", (long long)shape[1]);
        out->n_children = 1;
        out->children = &level->schema_child;
    } else {
        aq_format(level->format, sizeof level->format, "%s", row->arrow);
    }
    out->format = level->format;
    out->name = "";
    out->flags = ARROW_FLAG_NULLABLE;
    out->private_data = level;
    out->release = level_free_schema;
    return true;
}

static bool level_array(Block *block, const void *data, int ndim, const Py_ssize_t *shape,
                        int64_t length, struct ArrowArray *out) {
    ArrowLevel *level = (ArrowLevel *)calloc(1, sizeof *level);
    if (!level) return false;
    memset(out, 0, sizeof *out);
    if (ndim > 1) {
        level->array_child = (struct ArrowArray *)calloc(1, sizeof *level->array_child);
        if (!level->array_child || !level_array(block, data, ndim - 1, shape + 1,
                                                length * (int64_t)shape[1], level->array_child)) {
            free(level->array_child);
            free(level);
            return false;
        }
        out->n_children = 1;
        out->children = &level->array_child;
        out->n_buffers = 1;
    } else {
        level->buffers[1] = data;
        level->block = block;
        block_retain(block);
        out->n_buffers = 2;
    }
    out->length = length;
    out->buffers = level->buffers;
    out->private_data = level;
    out->release = level_free_array;
    return true;
}

static void arrow_schema_capsule_free(PyObject *capsule) {
    struct ArrowSchema *schema =
        (struct ArrowSchema *)PyCapsule_GetPointer(capsule, "arrow_schema");
    if (!schema) return;
    if (schema->release) schema->release(schema);
    free(schema);
}

static void arrow_array_capsule_free(PyObject *capsule) {
    struct ArrowArray *array = (struct ArrowArray *)PyCapsule_GetPointer(capsule, "arrow_array");
    if (!array) return;
    if (array->release) array->release(array);
    free(array);
}

/* ================================================================ Array */

/* Elements in row-major order: codes, parameters, dequantized weights, a kept tensor. */
typedef struct Array {
    PyObject_HEAD
    Block *block;
    void *data;
    const DtypeRow *row;
    bool read_only;
    int ndim;
    Py_ssize_t count;
    Py_ssize_t shape[RANK_MAX], strides[RANK_MAX];
} Array;

/* Takes its own reference to the block. */
static PyObject *array_new(const State *state, Block *block, const void *data, aq_dtype dtype,
                           int ndim, const Py_ssize_t *shape, bool read_only) {
    Array *self = (Array *)new_instance(state->array);
    Py_ssize_t stride;
    int i;
    if (!self) return NULL;
    self->row = dtype_row(dtype);
    self->data = (void *)(uintptr_t)data;
    self->read_only = read_only;
    self->ndim = ndim;
    self->count = 1;
    stride = (Py_ssize_t)aq_dtype_size(dtype);
    for (i = ndim - 1; i >= 0; i--) {
        self->shape[i] = shape[i];
        self->strides[i] = stride;
        stride *= shape[i];
        self->count *= shape[i];
    }
    self->block = block;
    block_retain(block);
    return (PyObject *)self;
}

/* A new array of its own memory, still to be filled. */
static PyObject *array_fresh(const State *state, aq_dtype dtype, int ndim, const Py_ssize_t *shape) {
    size_t size = aq_dtype_size(dtype);
    void *memory;
    Block *block;
    PyObject *made;
    int i;
    for (i = 0; i < ndim; i++)
        if (!aq_mul_size(size, (size_t)shape[i], &size) || size > PY_SSIZE_T_MAX)
            return PyErr_NoMemory();
    memory = aligned_memory(size);
    block = memory ? block_new(memory) : NULL;
    if (!block) {
        aligned_free(memory);
        return PyErr_NoMemory();
    }
    made = array_new(state, block, memory, dtype, ndim, shape, false);
    block_release(block);
    return made;
}

/* Little-endian bytes of a file as an array: where they are if this machine can read them there. */
static PyObject *array_of_file(const State *state, Block *block, const void *data, aq_dtype dtype,
                               int ndim, const Py_ssize_t *shape) {
    static const uint16_t probe = 1;
    size_t size = aq_dtype_size(dtype);
    bool little = *(const unsigned char *)&probe == 1;
    PyObject *made;
    if (size == 1 || (little && (uintptr_t)data % size == 0))
        return array_new(state, block, data, dtype, ndim, shape, true);
    made = array_fresh(state, dtype, ndim, shape);
    if (made) {
        Array *array = (Array *)made;
        memcpy(array->data, data, (size_t)array->count * size);
        aq_little_endian(array->data, (size_t)array->count, size);
        array->read_only = true;
    }
    return made;
}

static void array_dealloc(PyObject *self) {
    block_release(((Array *)self)->block);
    free_instance(self);
}

static int array_getbuffer(PyObject *object, Py_buffer *view, int flags) {
    Array *self = (Array *)object;
    if ((flags & PyBUF_WRITABLE) && self->read_only) {
        PyErr_SetString(PyExc_BufferError, "the array is read-only");
        view->obj = NULL;
        return -1;
    }
    memset(view, 0, sizeof *view);
    Py_INCREF(object);
    view->obj = object;
    view->buf = self->data;
    view->itemsize = (Py_ssize_t)aq_dtype_size(self->row->dtype);
    view->len = self->count * view->itemsize;
    view->readonly = self->read_only;
    view->ndim = self->ndim;
    if (flags & PyBUF_FORMAT) view->format = (char *)(uintptr_t)self->row->format;
    if ((flags & PyBUF_ND) == PyBUF_ND) view->shape = self->shape;
    if ((flags & PyBUF_STRIDES) == PyBUF_STRIDES) view->strides = self->strides;
    return 0;
}

static PyObject *array_element(const Array *self, const void *at) {
    float narrow = 0.0f;
    double wide;
    int64_t integer = 0;
    switch (self->row->dtype) {
    case AQ_DTYPE_F64:
        memcpy(&wide, at, 8);
        return PyFloat_FromDouble(wide);
    case AQ_DTYPE_F32:
    case AQ_DTYPE_F16:
    case AQ_DTYPE_BF16:
    case AQ_DTYPE_F8_E4M3:
    case AQ_DTYPE_F8_E5M2:
        aq_to_f32(NULL, self->row->dtype, at, &narrow, 1);
        return PyFloat_FromDouble((double)narrow);
    case AQ_DTYPE_BOOL: return PyBool_FromLong(*(const uint8_t *)at);
    case AQ_DTYPE_I8: return PyLong_FromLong(*(const int8_t *)at);
    case AQ_DTYPE_U8: return PyLong_FromLong(*(const uint8_t *)at);
    case AQ_DTYPE_I16: {
        int16_t value;
        memcpy(&value, at, 2);
        return PyLong_FromLong(value);
    }
    case AQ_DTYPE_U16: {
        uint16_t value;
        memcpy(&value, at, 2);
        return PyLong_FromLong(value);
    }
    case AQ_DTYPE_I32: {
        int32_t value;
        memcpy(&value, at, 4);
        return PyLong_FromLong(value);
    }
    case AQ_DTYPE_U32: {
        uint32_t value;
        memcpy(&value, at, 4);
        return PyLong_FromUnsignedLong(value);
    }
    default:
        memcpy(&integer, at, 8);
        if (self->row->dtype == AQ_DTYPE_U64)
            return PyLong_FromUnsignedLongLong((unsigned long long)integer);
        return PyLong_FromLongLong(integer);
    }
}

static PyObject *array_list(const Array *self, int axis, const char *at) {
    PyObject *list, *item;
    Py_ssize_t i;
    if (axis == self->ndim) return array_element(self, at);
    list = PyList_New(self->shape[axis]);
    for (i = 0; list && i < self->shape[axis]; i++) {
        item = array_list(self, axis + 1, at + i * self->strides[axis]);
        if (!item || PyList_SetItem(list, i, item) != 0) Py_CLEAR(list);
    }
    return list;
}

static PyObject *array_tolist(PyObject *self, PyObject *unused) {
    (void)unused;
    return array_list((const Array *)self, 0, (const char *)((const Array *)self)->data);
}

static PyObject *array_tobytes(PyObject *object, PyObject *unused) {
    const Array *self = (const Array *)object;
    (void)unused;
    return PyBytes_FromStringAndSize((const char *)self->data,
                                     self->count * (Py_ssize_t)aq_dtype_size(self->row->dtype));
}

static Py_ssize_t array_length(PyObject *object) {
    const Array *self = (const Array *)object;
    if (self->ndim) return self->shape[0];
    PyErr_SetString(PyExc_TypeError, "an array of no dimensions has no length");
    return -1;
}

/* A part along the first axis, of the same memory. */
static PyObject *array_part(PyObject *object, Py_ssize_t first, Py_ssize_t count, bool drop) {
    const Array *self = (const Array *)object;
    Py_ssize_t shape[RANK_MAX];
    const char *at = (const char *)self->data + first * self->strides[0];
    memcpy(shape, self->shape, sizeof shape);
    shape[0] = count;
    return array_new(state_of_object(object), self->block, at, self->row->dtype,
                     drop ? self->ndim - 1 : self->ndim, drop ? shape + 1 : shape, self->read_only);
}

static PyObject *array_item(PyObject *object, Py_ssize_t index) {
    const Array *self = (const Array *)object;
    if (!self->ndim || index < 0 || index >= self->shape[0]) {
        PyErr_SetString(PyExc_IndexError, "index out of range");
        return NULL;
    }
    if (self->ndim == 1)
        return array_element(self, (const char *)self->data + index * self->strides[0]);
    return array_part(object, index, 1, true);
}

static PyObject *array_subscript(PyObject *object, PyObject *key) {
    const Array *self = (const Array *)object;
    if (PyIndex_Check(key)) {
        Py_ssize_t index = PyNumber_AsSsize_t(key, PyExc_IndexError);
        if (index == -1 && PyErr_Occurred()) return NULL;
        if (index < 0 && self->ndim) index += self->shape[0];
        return array_item(object, index);
    }
    if (PySlice_Check(key) && self->ndim) {
        Py_ssize_t start, stop, step, count;
        if (PySlice_Unpack(key, &start, &stop, &step) < 0) return NULL;
        count = PySlice_AdjustIndices(self->shape[0], &start, &stop, step);
        if (step == 1) return array_part(object, start, count, false);
    }
    PyErr_SetString(PyExc_TypeError, "an index or a slice without step; numpy() gives the rest");
    return NULL;
}

/* Arrays are equal in dtype, shape and bytes; an array of bytes also equals bytes-like objects. */
static PyObject *array_compare(PyObject *object, PyObject *other, int operation) {
    const Array *self = (const Array *)object;
    size_t size = (size_t)self->count * aq_dtype_size(self->row->dtype);
    bool equal;
    if (operation != Py_EQ && operation != Py_NE) Py_RETURN_NOTIMPLEMENTED;
    if (Py_TYPE(other) == Py_TYPE(object)) {
        const Array *that = (const Array *)other;
        equal = self->row == that->row && self->ndim == that->ndim &&
                memcmp(self->shape, that->shape, (size_t)self->ndim * sizeof(Py_ssize_t)) == 0 &&
                memcmp(self->data, that->data, size) == 0;
    } else if (self->row->dtype == AQ_DTYPE_U8 && self->ndim == 1 && PyObject_CheckBuffer(other)) {
        Py_buffer view;
        if (PyObject_GetBuffer(other, &view, PyBUF_SIMPLE) != 0) {
            if (!PyErr_ExceptionMatches(PyExc_BufferError)) return NULL;
            PyErr_Clear();
            Py_RETURN_NOTIMPLEMENTED;
        }
        equal = (size_t)view.len == size && memcmp(view.buf, self->data, size) == 0;
        PyBuffer_Release(&view);
    } else {
        Py_RETURN_NOTIMPLEMENTED;
    }
    return PyBool_FromLong(equal == (operation == Py_EQ));
}

static PyObject *array_repr(PyObject *object) {
    const Array *self = (const Array *)object;
    PyObject *shape = PyObject_GetAttrString(object, "shape"), *text;
    if (!shape) return NULL;
    text = PyUnicode_FromFormat("<arrowquant.Array %R %s>", shape, self->row->name);
    Py_DECREF(shape);
    return text;
}

static PyObject *shape_tuple(int ndim, const Py_ssize_t *shape) {
    PyObject *made = PyTuple_New(ndim), *item;
    int i;
    for (i = 0; made && i < ndim; i++) {
        item = PyLong_FromSsize_t(shape[i]);
        if (!item || PyTuple_SetItem(made, i, item) != 0) Py_CLEAR(made);
    }
    return made;
}

static PyObject *array_shape(PyObject *self, void *unused) {
    (void)unused;
    return shape_tuple(((Array *)self)->ndim, ((Array *)self)->shape);
}

static PyObject *array_dtype(PyObject *self, void *unused) {
    (void)unused;
    return PyUnicode_FromString(((Array *)self)->row->name);
}

static PyObject *array_figure(PyObject *object, void *which) {
    const Array *self = (const Array *)object;
    Py_ssize_t itemsize = (Py_ssize_t)aq_dtype_size(self->row->dtype);
    switch (*(const char *)which) {
    case 'd': return PyLong_FromLong(self->ndim);
    case 'i': return PyLong_FromSsize_t(itemsize);
    case 's': return PyLong_FromSsize_t(self->count);
    case 'r': return PyBool_FromLong(self->read_only);
    default: return PyLong_FromSsize_t(self->count * itemsize);
    }
}

/* The memory as a NumPy array: `dtype` named for those that have no buffer format. */
static PyObject *array_numpy(PyObject *object, PyObject *unused) {
    const Array *self = (const Array *)object;
    PyObject *numpy = PyImport_ImportModule("numpy"), *made = NULL, *types, *type = NULL, *typed;
    (void)unused;
    if (numpy) made = PyObject_CallMethod(numpy, "asarray", "O", object);
    Py_XDECREF(numpy);
    if (!made || (self->row->dtype != AQ_DTYPE_BF16 && self->row->dtype != AQ_DTYPE_F8_E4M3 &&
                  self->row->dtype != AQ_DTYPE_F8_E5M2))
        return made;
    types = PyImport_ImportModule("ml_dtypes");
    if (!types) { /* the bits, as in the buffer */
        if (!PyErr_ExceptionMatches(PyExc_ImportError)) Py_CLEAR(made);
        else PyErr_Clear();
        return made;
    }
    type = PyObject_GetAttrString(types, self->row->name);
    typed = type ? PyObject_CallMethod(made, "view", "O", type) : NULL;
    Py_DECREF(types);
    Py_XDECREF(type);
    Py_DECREF(made);
    return typed;
}

static PyObject *array_dequantize(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "dtype", NULL };
    const Array *self = (const Array *)object;
    aq_dtype dtype = AQ_DTYPE_F32;
    PyObject *made;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O&:dequantize", names, dtype_converter, &dtype))
        return NULL;
    if (!aq_dtype_is_float(self->row->dtype)) {
        PyErr_Format(PyExc_TypeError, "a tensor of %s has no float values", self->row->name);
        return NULL;
    }
    if (dtype == self->row->dtype) return Py_NewRef(object);
    made = array_fresh(state_of_object(object), dtype, self->ndim, self->shape);
    if (!made) return NULL;
    Py_BEGIN_ALLOW_THREADS
    widen_to(self->row->dtype, self->data, dtype, ((Array *)made)->data, (size_t)self->count);
    Py_END_ALLOW_THREADS
    return made;
}

static PyObject *dlpack_device(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    return Py_BuildValue("(ii)", DL_CPU, 0);
}

static void dl_fill(DLExport *made, const Array *self, DLTensor *tensor) {
    Py_ssize_t itemsize = (Py_ssize_t)aq_dtype_size(self->row->dtype);
    int i;
    for (i = 0; i < self->ndim; i++) {
        made->dims[i] = (int64_t)self->shape[i];
        made->dims[RANK_MAX + i] = (int64_t)(self->strides[i] / itemsize);
    }
    tensor->data = self->data;
    tensor->device.type = DL_CPU;
    tensor->ndim = self->ndim;
    tensor->dtype.code = self->row->dl_code;
    tensor->dtype.bits = self->row->dl_bits;
    tensor->dtype.lanes = 1;
    tensor->shape = made->dims;
    tensor->strides = made->dims + RANK_MAX;
}

static PyObject *array_dlpack(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "stream", "max_version", "dl_device", "copy", NULL };
    PyObject *stream = Py_None, *version = Py_None, *device = Py_None, *copy = Py_None, *capsule;
    const Array *self = (const Array *)object;
    DLExport *made;
    int major = 0, minor = 0, type = DL_CPU, id = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOOO:__dlpack__", names, &stream, &version,
                                     &device, &copy))
        return NULL;
    if (version != Py_None && !PyArg_ParseTuple(version, "ii", &major, &minor)) return NULL;
    if (device != Py_None && !PyArg_ParseTuple(device, "ii", &type, &id)) return NULL;
    if (copy == Py_True && self->row->dl_bits && type == DL_CPU) {
        PyObject *twin = array_fresh(state_of_object(object), self->row->dtype, self->ndim,
                                     self->shape);
        if (!twin) return NULL;
        memcpy(((Array *)twin)->data, self->data,
               (size_t)self->count * aq_dtype_size(self->row->dtype));
        capsule = PyObject_CallMethod(twin, "__dlpack__", NULL);
        Py_DECREF(twin);
        return capsule;
    }
    if (stream != Py_None || type != DL_CPU || !self->row->dl_bits || (self->read_only && major < 1)) {
        PyErr_Format(PyExc_BufferError,
                     stream != Py_None || type != DL_CPU ? "the array is in the CPU's memory"
                     : !self->row->dl_bits ? "DLPack has no %s here; numpy() gives it"
                     : "a read-only array needs a consumer of DLPack 1.0; copy it", self->row->name);
        return NULL;
    }
    made = (DLExport *)calloc(1, sizeof *made);
    if (!made) return PyErr_NoMemory();
    made->block = self->block;
    if (major >= 1) {
        made->u.versioned.version.major = 1;
        made->u.versioned.owner = made;
        made->u.versioned.deleter = dl_free_versioned;
        made->u.versioned.flags = self->read_only ? DL_READ_ONLY : 0;
        dl_fill(made, self, &made->u.versioned.tensor);
        capsule = PyCapsule_New(&made->u.versioned, "dltensor_versioned", dl_capsule_free);
    } else {
        made->u.plain.owner = made;
        made->u.plain.deleter = dl_free_plain;
        dl_fill(made, self, &made->u.plain.tensor);
        capsule = PyCapsule_New(&made->u.plain, "dltensor", dl_capsule_free);
    }
    if (capsule) block_retain(self->block);
    else free(made);
    return capsule;
}

static PyObject *array_arrow_schema(PyObject *object, PyObject *unused) {
    const Array *self = (const Array *)object;
    struct ArrowSchema *schema = (struct ArrowSchema *)calloc(1, sizeof *schema);
    PyObject *capsule;
    (void)unused;
    if (!schema || !level_schema(self->row, self->ndim, self->shape, schema)) {
        free(schema);
        return PyErr_NoMemory();
    }
    capsule = PyCapsule_New(schema, "arrow_schema", arrow_schema_capsule_free);
    if (!capsule) {
        schema->release(schema);
        free(schema);
    }
    return capsule;
}

static PyObject *array_arrow(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "requested_schema", NULL };
    const Array *self = (const Array *)object;
    PyObject *requested = Py_None, *schema, *capsule = NULL, *pair = NULL;
    struct ArrowArray *array;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:__arrow_c_array__", names, &requested))
        return NULL;
    schema = array_arrow_schema(object, NULL);
    if (!schema) return NULL;
    array = (struct ArrowArray *)calloc(1, sizeof *array);
    if (!array || !level_array(self->block, self->data, self->ndim, self->shape,
                               self->ndim ? (int64_t)self->shape[0] : 1, array)) {
        free(array);
        Py_DECREF(schema);
        return PyErr_NoMemory();
    }
    capsule = PyCapsule_New(array, "arrow_array", arrow_array_capsule_free);
    if (capsule) {
        pair = PyTuple_Pack(2, schema, capsule);
        Py_DECREF(capsule);
    } else {
        array->release(array);
        free(array);
    }
    Py_DECREF(schema);
    return pair;
}

static PyMethodDef array_methods[] = {
    { "tolist", array_tolist, METH_NOARGS, "tolist($self)\n--\n\nThe elements as (nested lists of) Python numbers." },
    { "tobytes", array_tobytes, METH_NOARGS, "tobytes($self)\n--\n\nA copy of the elements' bytes, row-major." },
    { "numpy", array_numpy, METH_NOARGS, "numpy($self)\n--\n\nA NumPy array of the same memory. bfloat16 and float8 need ml_dtypes;\nwithout it their bits come as unsigned integers." },
    { "dequantize", (PyCFunction)(void (*)(void))array_dequantize, METH_VARARGS | METH_KEYWORDS, "dequantize($self, dtype='float32')\n--\n\nThe values as float32, float16 or bfloat16; itself when it has that dtype.\n\nRaises:\n    TypeError: the array holds integers." },
    { "__dlpack__", (PyCFunction)(void (*)(void))array_dlpack, METH_VARARGS | METH_KEYWORDS, "__dlpack__($self, *, stream=None, max_version=None, dl_device=None, copy=None)\n--\n\nA DLPack capsule of the same memory." },
    { "__dlpack_device__", dlpack_device, METH_NOARGS, "__dlpack_device__($self)\n--\n\nThe CPU." },
    { "__arrow_c_schema__", array_arrow_schema, METH_NOARGS, "__arrow_c_schema__($self)\n--\n\nThe Arrow type: nested fixed-size lists of the elements." },
    { "__arrow_c_array__", (PyCFunction)(void (*)(void))array_arrow, METH_VARARGS | METH_KEYWORDS, "__arrow_c_array__($self, requested_schema=None)\n--\n\nAn Arrow array of the same memory." },
    { NULL, NULL, 0, NULL },
};

static PyGetSetDef array_members[] = {
    { "shape", array_shape, NULL, "lengths of the axes", NULL },
    { "dtype", array_dtype, NULL, "name of the element type, such as 'float32'", NULL },
    { "ndim", array_figure, NULL, "number of axes", (void *)(uintptr_t)"d" },
    { "size", array_figure, NULL, "number of elements", (void *)(uintptr_t)"s" },
    { "itemsize", array_figure, NULL, "bytes of an element", (void *)(uintptr_t)"i" },
    { "nbytes", array_figure, NULL, "bytes of all elements", (void *)(uintptr_t)"n" },
    { "readonly", array_figure, NULL, "whether the memory may be written", (void *)(uintptr_t)"r" },
    { NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot array_slots[] = {
    { Py_tp_dealloc, (void *)array_dealloc },
    { Py_tp_repr, (void *)array_repr },
    { Py_tp_doc, (void *)(uintptr_t)"Elements in row-major order, offered through the buffer protocol, DLPack and Arrow without a copy." },
    { Py_tp_methods, array_methods },
    { Py_tp_getset, array_members },
    { Py_tp_richcompare, (void *)array_compare },
    { Py_tp_hash, (void *)PyObject_HashNotImplemented },
    { Py_bf_getbuffer, (void *)array_getbuffer },
    { Py_sq_length, (void *)array_length },
    { Py_sq_item, (void *)array_item },
    { Py_mp_length, (void *)array_length },
    { Py_mp_subscript, (void *)array_subscript },
    { 0, NULL },
};

static PyType_Spec array_spec = {
    "arrowquant._core.Array", sizeof(Array), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, array_slots
};

/* ================================================================ weights from Python */

/* Somebody's weights, borrowed until input_free. Elements may be strided, misaligned or of the other
 * byte order; input_settle makes a plain copy of those, and of those only. */
typedef struct Input {
    Py_buffer view;
    bool has_view;
    PyObject *keeper; /* what owns the memory, besides or instead of the view */
    DLManaged *plain;
    DLVersioned *versioned;
    struct ArrowArray array;
    void *copy;
    size_t room; /* bytes of the copy, when it grows */
    const char *data;
    aq_dtype dtype;
    bool swapped;
    int ndim;
    int64_t shape[RANK_MAX], strides[RANK_MAX]; /* strides in bytes */
    uint64_t count, rows, cols;
} Input;

static void input_free(Input *in) { /* with the GIL */
    if (in->has_view) PyBuffer_Release(&in->view);
    if (in->plain && in->plain->deleter) in->plain->deleter(in->plain);
    if (in->versioned && in->versioned->deleter) in->versioned->deleter(in->versioned);
    if (in->array.release) in->array.release(&in->array);
    Py_XDECREF(in->keeper);
    aligned_free(in->copy);
    memset(in, 0, sizeof *in);
}

static int refuse(PyObject *type, PyObject *name, const char *what, const char *found) {
    PyErr_Format(type, "%R: expected %s, found %s", name, what, found);
    return -1;
}

static int input_rank(Input *in, int ndim, PyObject *name) {
    if (ndim < 0 || ndim > RANK_MAX) return refuse(PyExc_ValueError, name, "at most 32 axes", "more");
    in->ndim = ndim;
    return 0;
}

/* Rows and columns as the quantizer sees them; strides filled when `compact`. */
static int input_shape(Input *in, bool compact, PyObject *name) {
    uint64_t count = 1;
    int64_t stride = (int64_t)aq_dtype_size(in->dtype);
    int i;
    for (i = in->ndim - 1; i >= 0; i--) {
        if (in->shape[i] < 0 || !aq_mul_u64(count, (uint64_t)in->shape[i], &count) ||
            count > (uint64_t)PY_SSIZE_T_MAX / 8)
            return refuse(PyExc_ValueError, name, "a shape that fits memory", "a larger one");
        if (compact) {
            in->strides[i] = stride;
            stride *= in->shape[i] ? in->shape[i] : 1;
        }
    }
    in->count = count;
    in->rows = in->ndim > 1 ? (uint64_t)in->shape[0] : 1;
    in->cols = in->rows ? count / in->rows : 0;
    return 0;
}

static int input_format(Input *in, const char *format, PyObject *name) {
    static const uint16_t probe = 1;
    bool little = *(const unsigned char *)&probe == 1;
    const char *code = format ? format : "B";
    char order = '@';
    if (strchr("@=<>!", *code) && *code) order = *code++;
    in->swapped = (order == '<' && !little) || ((order == '>' || order == '!') && little);
    if (code[0] && !code[1]) {
        if (*code == 'd') return in->dtype = AQ_DTYPE_F64, 0;
        if (*code == 'f') return in->dtype = AQ_DTYPE_F32, 0;
        if (*code == 'e') return in->dtype = AQ_DTYPE_F16, 0;
        if (*code == 'H') return in->dtype = AQ_DTYPE_BF16, 0;
    }
    PyErr_Format(PyExc_TypeError,
                 "%R: expected elements of float16, float32, float64, or the bits of bfloat16 as "
                 "uint16, found the buffer format '%s'; convert it to float32", name, format ? format : "B");
    return -1;
}

static int input_from_buffer(Input *in, PyObject *object, PyObject *name) {
    int i;
    if (PyObject_GetBuffer(object, &in->view, PyBUF_RECORDS_RO) != 0) return -1;
    in->has_view = true;
    if (input_format(in, in->view.format, name) != 0 || input_rank(in, in->view.ndim, name) != 0)
        return -1;
    in->data = (const char *)in->view.buf;
    for (i = 0; i < in->ndim; i++) {
        in->shape[i] = in->view.shape[i];
        in->strides[i] = in->view.strides[i];
    }
    return input_shape(in, false, name);
}

static int input_from_dl(Input *in, const DLTensor *tensor, PyObject *name) {
    int64_t size;
    int i;
    if (tensor->device.type != DL_CPU && tensor->device.type != DL_CUDA_HOST &&
        tensor->device.type != DL_ROCM_HOST && tensor->device.type != DL_CUDA_MANAGED)
        return refuse(PyExc_TypeError, name, "weights in the CPU's memory",
                      "those of another device; call .cpu() first");
    if (tensor->dtype.lanes != 1) return refuse(PyExc_TypeError, name, "plain elements", "vectors");
    if (tensor->dtype.code == 2 && tensor->dtype.bits == 64) in->dtype = AQ_DTYPE_F64;
    else if (tensor->dtype.code == 2 && tensor->dtype.bits == 32) in->dtype = AQ_DTYPE_F32;
    else if (tensor->dtype.code == 2 && tensor->dtype.bits == 16) in->dtype = AQ_DTYPE_F16;
    else if (tensor->dtype.code == 4 && tensor->dtype.bits == 16) in->dtype = AQ_DTYPE_BF16;
    else return refuse(PyExc_TypeError, name, "float16, bfloat16, float32 or float64",
                       "another DLPack type; convert it to float32");
    if (input_rank(in, tensor->ndim, name) != 0) return -1;
    size = (int64_t)aq_dtype_size(in->dtype);
    in->data = (const char *)tensor->data + tensor->byte_offset;
    for (i = 0; i < in->ndim; i++) {
        in->shape[i] = tensor->shape[i];
        if (tensor->strides) in->strides[i] = tensor->strides[i] * size;
    }
    return input_shape(in, !tensor->strides, name);
}

/* capsule of __dlpack__: ours from now on */
static int input_from_capsule(Input *in, PyObject *capsule, PyObject *name) {
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        in->versioned = (DLVersioned *)PyCapsule_GetPointer(capsule, "dltensor_versioned");
        if (in->versioned->version.major != 1) {
            in->versioned = NULL;
            return refuse(PyExc_BufferError, name, "DLPack 1.x", "another version");
        }
        if (PyCapsule_SetName(capsule, "used_dltensor_versioned") != 0) return -1;
        return input_from_dl(in, &in->versioned->tensor, name);
    }
    if (PyCapsule_IsValid(capsule, "dltensor")) {
        in->plain = (DLManaged *)PyCapsule_GetPointer(capsule, "dltensor");
        if (PyCapsule_SetName(capsule, "used_dltensor") != 0) return -1;
        return input_from_dl(in, &in->plain->tensor, name);
    }
    return refuse(PyExc_TypeError, name, "a DLPack capsule", "something else");
}

static int input_from_dlpack(Input *in, PyObject *object, PyObject *name) {
    PyObject *method = PyObject_GetAttrString(object, "__dlpack__"), *none, *kwargs, *capsule;
    int status;
    if (!method) return -1;
    none = PyTuple_New(0);
    kwargs = Py_BuildValue("{s(ii)}", "max_version", 1, 0);
    capsule = none && kwargs ? PyObject_Call(method, none, kwargs) : NULL;
    if (!capsule && PyErr_ExceptionMatches(PyExc_TypeError)) { /* older than DLPack 1.0 */
        PyErr_Clear();
        capsule = PyObject_CallObject(method, NULL);
    }
    Py_XDECREF(none);
    Py_XDECREF(kwargs);
    Py_DECREF(method);
    if (!capsule) return -1;
    status = input_from_capsule(in, capsule, name);
    Py_DECREF(capsule);
    return status;
}

/* Descends nested fixed-size lists of floats; anything that could be ragged or null is refused. */
static int input_from_arrow(Input *in, const struct ArrowSchema *schema, PyObject *name) {
    const struct ArrowArray *array = &in->array;
    int64_t first = 0, length = in->array.length;
    in->ndim = 0;
    for (;;) {
        if (array->null_count > 0 || (array->null_count < 0 && array->n_buffers && array->buffers[0]))
            return refuse(PyExc_ValueError, name, "no nulls", "some; fill them first");
        if (input_rank(in, in->ndim + 1, name) != 0) return -1;
        in->shape[in->ndim - 1] = length;
        first += array->offset;
        if (strncmp(schema->format, "+w:", 3) != 0) break;
        uint64_t width;
        if (!aq_parse_u64(schema->format + 3, strlen(schema->format + 3), &width) ||
            width > INT32_MAX || schema->n_children != 1 || array->n_children != 1)
            return refuse(PyExc_ValueError, name, "a sound Arrow array", schema->format);
        length = (int64_t)width;
        first *= length;
        schema = schema->children[0];
        array = array->children[0];
    }
    if (strcmp(schema->format, "g") == 0) in->dtype = AQ_DTYPE_F64;
    else if (strcmp(schema->format, "f") == 0) in->dtype = AQ_DTYPE_F32;
    else if (strcmp(schema->format, "e") == 0) in->dtype = AQ_DTYPE_F16;
    else return refuse(PyExc_TypeError, name, "an Arrow array of floats, or fixed-size lists of them",
                       schema->format);
    if (array->n_buffers != 2) return refuse(PyExc_ValueError, name, "a sound Arrow array", "another");
    in->data = (const char *)array->buffers[1] + first * (int64_t)aq_dtype_size(in->dtype);
    return input_shape(in, true, name);
}

static int input_from_arrow_array(Input *in, PyObject *object, PyObject *name) {
    PyObject *pair = PyObject_CallMethod(object, "__arrow_c_array__", NULL);
    struct ArrowSchema *schema = NULL;
    struct ArrowArray *array = NULL;
    int status = -1;
    if (!pair) return -1;
    if (PyTuple_Check(pair) && PyTuple_Size(pair) == 2) {
        schema = (struct ArrowSchema *)PyCapsule_GetPointer(PyTuple_GetItem(pair, 0), "arrow_schema");
        array = schema ? (struct ArrowArray *)PyCapsule_GetPointer(PyTuple_GetItem(pair, 1),
                                                                   "arrow_array") : NULL;
    }
    if (array && array->release) {
        in->array = *array; /* moved */
        array->release = NULL;
        status = input_from_arrow(in, schema, name);
    } else if (!PyErr_Occurred()) {
        refuse(PyExc_TypeError, name, "a pair of Arrow capsules", "something else");
    }
    Py_DECREF(pair);
    return status;
}

/* A chunked column (polars, pyarrow): one chunk is used where it is, several are joined. */
static int stream_error(struct ArrowArrayStream *stream, PyObject *name) {
    const char *text = stream->get_last_error ? stream->get_last_error(stream) : NULL;
    return refuse(PyExc_ValueError, name, "an Arrow stream", text ? text : "one that fails");
}

static int input_join(Input *in, const Input *next, PyObject *name) {
    size_t size = aq_dtype_size(in->dtype), row = 1, a, b;
    char *memory = (char *)in->copy;
    int i;
    for (i = 1; i < in->ndim; i++) row *= (size_t)in->shape[i];
    if (in->dtype != next->dtype || in->ndim != next->ndim ||
        memcmp(in->shape + 1, next->shape + 1, (size_t)(in->ndim - 1) * sizeof *in->shape) != 0)
        return refuse(PyExc_ValueError, name, "chunks of one type", "several");
    a = (size_t)in->shape[0] * row * size;
    b = (size_t)next->shape[0] * row * size;
    if (!memory || in->room < a + b) {
        size_t room = 2 * (a + b); /* a column may have thousands of chunks */
        memory = (char *)aligned_memory(room);
        if (!memory) return PyErr_NoMemory(), -1;
        if (a) memcpy(memory, in->data, a);
        aligned_free(in->copy);
        in->copy = memory;
        in->data = memory;
        in->room = room;
        if (in->array.release) in->array.release(&in->array);
        in->array.release = NULL;
    }
    if (b) memcpy(memory + a, next->data, b);
    in->shape[0] += next->shape[0];
    return input_shape(in, true, name);
}

static int input_from_chunks(Input *in, struct ArrowArrayStream *stream, PyObject *name) {
    struct ArrowSchema schema;
    int status = -1;
    bool any = false;
    memset(&schema, 0, sizeof schema);
    if (stream->get_schema(stream, &schema) != 0) return stream_error(stream, name);
    for (;;) {
        Input next;
        memset(&next, 0, sizeof next);
        status = PyErr_CheckSignals();
        if (status == 0 && stream->get_next(stream, &next.array) != 0) status = stream_error(stream, name);
        else if (status == 0 && !next.array.release) break;
        if (status == 0) status = input_from_arrow(&next, &schema, name);
        if (status == 0 && any) {
            status = input_join(in, &next, name);
            input_free(&next);
        } else if (status == 0) {
            *in = next;
            any = true;
        } else {
            input_free(&next);
        }
        if (status != 0) break;
    }
    if (status == 0 && !any) status = refuse(PyExc_ValueError, name, "weights", "an empty stream");
    if (schema.release) schema.release(&schema);
    return status;
}

static int input_from_stream(Input *in, PyObject *object, PyObject *name) {
    PyObject *capsule = PyObject_CallMethod(object, "__arrow_c_stream__", NULL);
    struct ArrowArrayStream *stream;
    int status = -1;
    if (!capsule) return -1;
    stream = (struct ArrowArrayStream *)PyCapsule_GetPointer(capsule, "arrow_array_stream");
    if (stream && stream->release) status = input_from_chunks(in, stream, name);
    Py_DECREF(capsule);
    return status;
}

/* Nested lists of numbers: the shape first, then the elements. */
static int list_shape(Input *in, PyObject *object, PyObject *name) {
    PyObject *inner = Py_NewRef(object);
    int status = 0;
    in->ndim = 0;
    while (status == 0 && (PyList_Check(inner) || PyTuple_Check(inner))) {
        PyObject *outer = inner;
        Py_ssize_t length = PySequence_Size(outer);
        status = input_rank(in, in->ndim + 1, name);
        if (status == 0) in->shape[in->ndim - 1] = length;
        if (status != 0 || length <= 0) break;
        inner = PySequence_GetItem(outer, 0);
        Py_DECREF(outer);
        if (!inner) return -1;
    }
    Py_DECREF(inner);
    return status == 0 ? input_shape(in, true, name) : status;
}

static int list_fill(const Input *in, PyObject *object, int axis, double **out, PyObject *name) {
    Py_ssize_t i, length;
    int status = 0;
    if (axis == in->ndim) {
        double value;
        if ((*out - (double *)in->copy) % LOOK_EACH == 0 && PyErr_CheckSignals() != 0) return -1;
        value = PyFloat_AsDouble(object);
        if (value == -1.0 && PyErr_Occurred()) {
            if (!PyErr_ExceptionMatches(PyExc_TypeError)) return -1; /* Ctrl-C in a __float__, say */
            PyErr_Clear();
            return refuse(PyExc_TypeError, name, "numbers", "something else in the list");
        }
        *(*out)++ = value;
        return 0;
    }
    length = PyList_Check(object) || PyTuple_Check(object) ? PySequence_Size(object) : -1;
    if (length != in->shape[axis])
        return refuse(PyExc_ValueError, name, "lists of the same length", "a ragged one");
    for (i = 0; status == 0 && i < length; i++) {
        PyObject *item = PySequence_GetItem(object, i);
        status = item ? list_fill(in, item, axis + 1, out, name) : -1;
        Py_XDECREF(item);
    }
    return status;
}

static int input_from_list(Input *in, PyObject *object, PyObject *name) {
    double *next;
    in->dtype = AQ_DTYPE_F64;
    if (list_shape(in, object, name) != 0) return -1;
    in->copy = aligned_memory((size_t)in->count * sizeof(double));
    if (!in->copy) return PyErr_NoMemory(), -1;
    in->data = (const char *)in->copy;
    next = (double *)in->copy;
    return list_fill(in, object, 0, &next, name);
}

/* The result of a method without arguments replaces the object. */
static int input_through(Input *in, PyObject *object, const char *method, const char *argument,
                         PyObject *name);

/* 1 or 0, and -1 with an exception. PyObject_HasAttrString would swallow all of them, Ctrl-C included. */
static int has_attribute(PyObject *object, const char *name) {
    PyObject *found = PyObject_GetAttrString(object, name);
    Py_XDECREF(found);
    if (found) return 1;
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) return -1;
    PyErr_Clear();
    return 0;
}

static int has_both(PyObject *object, const char *first, const char *second) {
    int has = has_attribute(object, first);
    return has == 1 ? has_attribute(object, second) : has;
}

/* Whether the dtype is bfloat16 by its name; NumPy's own types, quickly known by their kind, are not. */
static int dtype_is_bfloat16(PyObject *dtype) {
    PyObject *kind = PyObject_GetAttrString(dtype, "kind"), *text;
    const char *is = kind && PyUnicode_Check(kind) ? PyUnicode_AsUTF8AndSize(kind, NULL) : NULL;
    bool own = is && strcmp(is, "V") != 0;
    int found = -1;
    Py_XDECREF(kind);
    if (own) return 0;
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) return -1;
        PyErr_Clear();
    }
    text = PyObject_Str(dtype);
    is = text ? PyUnicode_AsUTF8AndSize(text, NULL) : NULL;
    if (is) found = strcmp(is, "bfloat16") == 0;
    Py_XDECREF(text);
    return found;
}

/* An array of NumPy's whose dtype is the bfloat16 of ml_dtypes, which has no buffer. */
static int named_bfloat16(PyObject *object) {
    PyObject *dtype;
    int has = has_attribute(object, "dtype");
    if (has != 1) return has;
    dtype = PyObject_GetAttrString(object, "dtype");
    if (!dtype) return -1;
    has = dtype_is_bfloat16(dtype);
    Py_DECREF(dtype);
    return has == 1 ? has_attribute(object, "__array_interface__") : has;
}

static int input_from_arrays_buffer(Input *in, PyObject *object, PyObject *name) {
    int has;
    if (input_from_buffer(in, object, name) == 0) return 0;
    if (!PyErr_ExceptionMatches(PyExc_BufferError)) return -1;
    PyErr_Clear();
    has = has_attribute(object, "__dlpack__"); /* JAX: no buffer of bfloat16, but DLPack */
    if (has < 0) return -1;
    input_free(in);
    return has ? input_from_dlpack(in, object, name) : input_from_buffer(in, object, name);
}

static int input_from(Input *in, PyObject *object, PyObject *name) {
    static const struct {
        const char *method;
        int (*take)(Input *in, PyObject *object, PyObject *name);
    } ways[] = { { "__arrow_c_array__", input_from_arrow_array },
                 { "__arrow_c_stream__", input_from_stream },
                 { "__dlpack__", input_from_dlpack } };
    int has;
    size_t i;
    if (PyList_Check(object) || PyTuple_Check(object)) return input_from_list(in, object, name);
    has = has_both(object, "__dlpack__", "detach");
    if (has == 1) return input_through(in, object, "detach", NULL, name); /* torch: without its gradient */
    if (has == 0) has = named_bfloat16(object);
    if (has == 1) return input_through(in, object, "view", "uint16", name);
    if (has < 0) return -1;
    if (PyObject_CheckBuffer(object)) return input_from_arrays_buffer(in, object, name);
    for (i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        has = has_attribute(object, ways[i].method);
        if (has < 0) return -1;
        if (has) return ways[i].take(in, object, name);
    }
    has = has_attribute(object, "__array__");
    if (has == 1) return input_through(in, object, "__array__", NULL, name);
    if (has == 0)
        PyErr_Format(PyExc_TypeError,
                     "%R: expected weights as a buffer, a DLPack tensor, an Arrow array or lists of "
                     "numbers, found %R", name, Py_TYPE(object));
    return -1;
}

static int input_through(Input *in, PyObject *object, const char *method, const char *argument,
                         PyObject *name) {
    PyObject *result = argument ? PyObject_CallMethod(object, method, "s", argument)
                                : PyObject_CallMethod(object, method, NULL);
    int status;
    if (!result) return -1;
    if (strcmp(method, "detach") == 0) status = input_from_dlpack(in, result, name);
    else if (PyObject_CheckBuffer(result)) status = input_from_buffer(in, result, name);
    else status = refuse(PyExc_TypeError, name, "an array", "something without a buffer");
    if (status == 0) in->keeper = result;
    else Py_DECREF(result);
    return status;
}

/* ---- plain copies of what is not plain (no GIL) */

static bool input_is_plain(const Input *in) {
    int64_t stride = (int64_t)aq_dtype_size(in->dtype);
    int i;
    if (in->swapped || (uintptr_t)in->data % (uintptr_t)stride != 0) return false;
    for (i = in->ndim - 1; i >= 0 && in->count; i--) {
        if (in->shape[i] != 1 && in->strides[i] != stride) return false;
        stride *= in->shape[i];
    }
    return true;
}

/* NULL when the context was cancelled meanwhile. */
static char *gather(const aq_context *context, const Input *in, int axis, const char *from, char *to) {
    int64_t i, n, stride;
    size_t size = aq_dtype_size(in->dtype), b;
    if (axis == in->ndim) {
        for (b = 0; b < size; b++) to[b] = from[in->swapped ? size - 1 - b : b];
        return to + size;
    }
    n = in->shape[axis];
    stride = in->strides[axis];
    if (axis + 1 < in->ndim || in->swapped) {
        for (i = 0; to && i < n; i++) {
            if (i % LOOK_EACH == 0 && aq_is_cancelled(context)) return NULL;
            to = gather(context, in, axis + 1, from + i * stride, to);
        }
        return to;
    }
    for (i = 0; i < n; i++, from += stride, to += size) { /* constant sizes: single moves */
        if (i % LOOK_EACH == 0 && aq_is_cancelled(context)) return NULL;
        if (size == 4) memcpy(to, from, 4);
        else if (size == 2) memcpy(to, from, 2);
        else memcpy(to, from, 8);
    }
    return to;
}

/* *plain: the elements in row-major order; *owned is to be freed by aligned_free. */
static aq_status input_settle(const aq_context *context, const Input *in, const void **plain,
                              void **owned, aq_error *err) {
    *owned = NULL;
    *plain = in->data;
    if (input_is_plain(in)) return AQ_OK;
    *owned = aligned_memory((size_t)in->count * aq_dtype_size(in->dtype));
    if (!*owned) {
        clear_error(err, AQ_ERR_OUT_OF_MEMORY);
        aq_format(err->message, sizeof err->message, "no memory for a copy of strided weights");
        return AQ_ERR_OUT_OF_MEMORY;
    }
    if (in->count && !gather(context, in, 0, in->data, (char *)*owned)) {
        clear_error(err, AQ_ERR_CANCELLED);
        aq_format(err->message, sizeof err->message, "cancelled");
        return AQ_ERR_CANCELLED;
    }
    *plain = *owned;
    return AQ_OK;
}

/* ================================================================ Context */

/* What a call can be stopped by, from any thread. */
typedef struct Context {
    PyObject_HEAD
    aq_context *context;
} Context;

static aq_context *make_context(uint32_t threads) {
    aq_context *context = NULL;
    aq_error err;
    clear_error(&err, AQ_OK);
    if (aq_context_create(AQ_ISA_AUTO, NULL, &context, &err) != AQ_OK) {
        raise_error(&err);
        return NULL;
    }
    context->num_threads = threads;
    return context;
}

static PyObject *context_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "num_threads", NULL };
    unsigned int threads = 0;
    PyObject *self;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|I:Context", names, &threads)) return NULL;
    self = new_instance(type);
    if (!self) return NULL;
    ((Context *)self)->context = make_context(threads);
    if (!((Context *)self)->context) Py_CLEAR(self);
    return self;
}

static void context_dealloc(PyObject *self) {
    aq_context_destroy(((Context *)self)->context);
    free_instance(self);
}

static PyObject *context_cancel(PyObject *self, PyObject *unused) {
    (void)unused;
    aq_context_cancel(((Context *)self)->context);
    Py_RETURN_NONE;
}

static PyObject *context_check(PyObject *self, PyObject *unused) {
    aq_error err;
    (void)unused;
    if (!aq_is_cancelled(((Context *)self)->context)) Py_RETURN_NONE;
    clear_error(&err, AQ_ERR_CANCELLED);
    aq_format(err.message, sizeof err.message, "cancelled");
    return raise_error(&err);
}

static PyObject *context_isa(PyObject *self, void *unused) {
    (void)unused;
    return PyUnicode_FromString(aq_isa_name(((Context *)self)->context->isa));
}

static PyMethodDef context_methods[] = {
    { "cancel", context_cancel, METH_NOARGS, "cancel($self)\n--\n\nStops the calls that use this context; returns at once, from any thread." },
    { "check", context_check, METH_NOARGS, "check($self)\n--\n\nRaises QuantizationError when it has been cancelled." },
    { NULL, NULL, 0, NULL },
};

static PyGetSetDef context_members[] = {
    { "isa", context_isa, NULL, "the instruction set in use, such as 'avx2'", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot context_slots[] = {
    { Py_tp_new, (void *)context_new },
    { Py_tp_dealloc, (void *)context_dealloc },
    { Py_tp_doc, (void *)(uintptr_t)"Context(num_threads=0)\n--\n\nInstruction set, threads, and the way to cancel a call." },
    { Py_tp_methods, context_methods },
    { Py_tp_getset, context_members },
    { 0, NULL },
};

static PyType_Spec context_spec = { "arrowquant._core.Context", sizeof(Context), 0,
                                    Py_TPFLAGS_DEFAULT, context_slots };

/* A call's own context, which is cancelled with it: with the settings of the one that was given, whose
 * owner may cancel that; *asked is NULL without one. It is a copy, so nothing need be freed. */
static bool context_of_call(const State *state, PyObject *object, uint32_t threads, aq_context *own,
                            const aq_context **asked) {
    aq_context *made;
    *asked = NULL;
    if (object != Py_None) {
        if (Py_TYPE(object) != state->context) {
            PyErr_Format(PyExc_TypeError, "context: expected a Context, found %R", Py_TYPE(object));
            return false;
        }
        made = ((Context *)object)->context;
        *asked = made;
        own->allocator = made->allocator; /* all but cancel_requested, which others write */
        own->kernels = made->kernels;
        own->isa = made->isa;
        own->num_threads = made->num_threads;
        own->log = made->log;
        own->log_user = made->log_user;
        own->cancel_requested = aq_is_cancelled(made) ? 1 : 0;
        return true;
    }
    made = make_context(threads);
    if (!made) return false;
    *own = *made;
    aq_context_destroy(made);
    return true;
}

/* ================================================================ long calls */

/* What the library last told of a phase, until Python has heard it. */
typedef struct News {
    aq_progress progress;
    char layer[256];
    unsigned long number; /* of all that was told; 0: heard */
} News;

/* A call of the library that may take long. It runs in a thread of its own; the one that Python called
 * waits, looks for signals, tells Python how far it is, and cancels the call when an exception comes
 * up (Ctrl-C, say) or the owner of a Context has cancelled that. So however long the library is busy
 * without a word, as with one large Hessian, nobody waits for it. */
typedef struct Job {
    PyObject *callback;
    PyObject *watch; /* called some ten times a second; NULL: nothing is */
    double watched;
    aq_context *context;     /* of this call alone */
    const aq_context *asked; /* may be NULL */
    aq_status (*work)(struct Job *job);
    const char *first, *second; /* what the calls below work on, each on some of it */
    aq_plan *plan;
    aq_model *model;
    const aq_config *config;
    void *user;
    aq_dtype dtype;
    bool flag;
    size_t number;
    char *text; /* made by the work */
    size_t text_size;
    aq_status status;
    aq_error err;
    PyThread_type_lock ended; /* held until the work is done */
    PyThread_type_lock guard; /* of the news; held for moments */
    long stop, over;          /* atomic */
    unsigned long told;
    News news[AQ_PHASE_VERIFY + 2]; /* the last one: what was told first */
    bool raised;
} Job;

static void job_begin(Job *job, aq_context *context, const aq_context *asked, PyObject *callback) {
    memset(job, 0, sizeof *job);
    job->callback = callback;
    job->context = context;
    job->asked = asked;
}

static bool tell(const Job *job, double fraction, const char *phase, const char *layer, uint64_t done,
                 uint64_t total, double elapsed, double eta) {
    PyObject *name, *result;
    if (PyErr_CheckSignals() != 0) return false;
    if (!job->callback || job->callback == Py_None) return true;
    name = PyUnicode_DecodeUTF8(layer, (Py_ssize_t)strlen(layer), "replace");
    if (!name) return false;
    result = PyObject_CallFunction(job->callback, "dsNKKdd", fraction, phase, name,
                                   (unsigned long long)done, (unsigned long long)total, elapsed, eta);
    Py_XDECREF(result);
    return result != NULL;
}

/* The library's progress function, in the thread that works. */
static int job_progress(void *user, const aq_progress *progress) {
    Job *job = (Job *)user;
    News *news;
    PyThread_acquire_lock(job->guard, WAIT_LOCK);
    news = &job->news[job->told ? (int)progress->phase : (int)AQ_PHASE_VERIFY + 1];
    news->progress = *progress;
    news->progress.layer = NULL; /* the library's text may go */
    aq_format(news->layer, sizeof news->layer, "%s", progress->layer);
    news->number = ++job->told;
    PyThread_release_lock(job->guard);
    return ATOMIC_GET(&job->stop) != 0;
}

/* Takes the oldest news; false when there are none. */
static bool job_news(Job *job, News *out) {
    News *oldest = NULL;
    int i;
    PyThread_acquire_lock(job->guard, WAIT_LOCK);
    for (i = 0; i <= (int)AQ_PHASE_VERIFY + 1; i++)
        if (job->news[i].number && (!oldest || job->news[i].number < oldest->number))
            oldest = &job->news[i];
    if (oldest) {
        *out = *oldest;
        oldest->number = 0;
    }
    PyThread_release_lock(job->guard);
    return oldest != NULL;
}

static bool job_watch(Job *job) {
    PyObject *result;
    double now = aq_clock_seconds();
    if (!job->watch || now - job->watched < WATCH_SECONDS) return true;
    job->watched = now;
    result = PyObject_CallObject(job->watch, NULL);
    Py_XDECREF(result);
    return result != NULL;
}

/* Looks for signals and tells what is new; false when an exception came up. */
static bool job_look(Job *job) {
    News news;
    if (PyErr_CheckSignals() != 0 || !job_watch(job)) return false;
    while (job_news(job, &news))
        if (!tell(job, news.progress.fraction, aq_phase_name(news.progress.phase), news.layer,
                  news.progress.bytes_done, news.progress.bytes_total, news.progress.elapsed_s,
                  news.progress.eta_s))
            return false;
    return true;
}

static void job_thread(void *user) {
    Job *job = (Job *)user;
    PyThread_type_lock ended = job->ended; /* the job may be gone after the last step */
    job->status = job->work(job);
    (void)ATOMIC_ADD(&job->over, 1);
    PyThread_release_lock(ended);
}

static void job_wait(Job *job) {
    bool over = false;
    while (!over) {
        Py_BEGIN_ALLOW_THREADS
        over = PyThread_acquire_lock_timed(job->ended, POLL_MICROSECONDS, 0) == PY_LOCK_ACQUIRED;
        Py_END_ALLOW_THREADS
        if (job->asked && aq_is_cancelled(job->asked)) aq_context_cancel(job->context);
        if (job->raised || job_look(job)) continue;
        job->raised = true;
        (void)ATOMIC_ADD(&job->stop, 1);
        aq_context_cancel(job->context);
    }
    (void)ATOMIC_GET(&job->over); /* pairs with job_thread, whatever the lock is made of */
}

/* Runs the work; its status, which counts for nothing when job->raised. */
static aq_status job_run(Job *job, aq_status (*work)(Job *job)) {
    job->work = work;
    clear_error(&job->err, AQ_OK);
    if (job->asked && aq_is_cancelled(job->asked)) aq_context_cancel(job->context);
    job->ended = PyThread_allocate_lock();
    job->guard = PyThread_allocate_lock();
    if (!job->ended || !job->guard) {
        PyErr_NoMemory();
        job->raised = true;
    } else {
        PyThread_acquire_lock(job->ended, WAIT_LOCK);
        if (PyThread_start_new_thread(job_thread, job) == NO_THREAD) {
            Py_BEGIN_ALLOW_THREADS
            job_thread(job);
            Py_END_ALLOW_THREADS
        }
        job_wait(job);
        PyThread_release_lock(job->ended);
    }
    if (job->ended) PyThread_free_lock(job->ended);
    if (job->guard) PyThread_free_lock(job->guard);
    return job->status;
}

/* After it: whether all went well; else an exception is set. */
static bool job_good(const Job *job) {
    if (job->raised) return false;
    if (job->status == AQ_OK) return true;
    raise_error(&job->err);
    return false;
}

/* ================================================================ QuantizedTensor */

typedef struct Quantized {
    PyObject_HEAD
    Block *block;
    const aq_tensor *tensor; /* of an opened model, else NULL */
    const void *codes, *params, *extra;
    aq_quant_spec spec;
    aq_quant_layout layout;
    double cosine, sqnr, max_error;
    const char *code_name, *method, *dtype;
    int ndim;
    Py_ssize_t shape[RANK_MAX];
} Quantized;

static void quantized_dealloc(PyObject *self) {
    block_release(((Quantized *)self)->block);
    free_instance(self);
}

/* What is dequantized, and where to. */
typedef struct Values {
    const Quantized *from;
    void *to;
} Values;

static aq_status work_dequantize(Job *job) {
    const Values *values = (const Values *)job->user;
    const Quantized *self = values->from;
    if (self->tensor)
        return aq_tensor_dequantize(job->context, self->tensor, 0, self->layout.rows, job->dtype,
                                    values->to, &job->err);
    return aq_dequantize(job->context, &self->spec, self->codes, self->params, self->extra,
                         self->layout.rows, self->layout.cols, job->dtype, values->to, &job->err);
}

static PyObject *quantized_values(PyObject *object, aq_dtype dtype) {
    const Quantized *self = (const Quantized *)object;
    const State *state = state_of_object(object);
    PyObject *made = array_fresh(state, dtype, self->ndim, self->shape);
    const aq_context *asked;
    aq_context context;
    Values values;
    Job job;
    if (!made) return NULL;
    values.from = self;
    values.to = ((Array *)made)->data;
    job_begin(&job, NULL, NULL, NULL);
    job.user = &values;
    job.dtype = dtype;
    if ((uint64_t)((Array *)made)->count <= INLINE_WEIGHTS) {
        clear_error(&job.err, AQ_OK);
        Py_BEGIN_ALLOW_THREADS
        job.status = work_dequantize(&job);
        Py_END_ALLOW_THREADS
    } else if (context_of_call(state, Py_None, 0, &context, &asked)) {
        job.context = &context;
        (void)job_run(&job, work_dequantize);
    } else {
        job.raised = true;
    }
    if (job_good(&job)) return made;
    Py_DECREF(made);
    return NULL;
}

static PyObject *quantized_dequantize(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "dtype", NULL };
    aq_dtype dtype = AQ_DTYPE_F32;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O&:dequantize", names, dtype_converter, &dtype))
        return NULL;
    return quantized_values(self, dtype);
}

/* The views of the values: dequantized once, then shared with whoever asked. */
static int quantized_getbuffer(PyObject *self, Py_buffer *view, int flags) {
    PyObject *values = quantized_values(self, AQ_DTYPE_F32);
    int status;
    view->obj = NULL;
    if (!values) {
        if (PyErr_ExceptionMatches(PyExc_Exception)) /* not Ctrl-C */
            PyErr_SetString(PyExc_BufferError, "the tensor cannot be dequantized");
        return -1;
    }
    status = PyObject_GetBuffer(values, view, flags);
    Py_DECREF(values);
    return status;
}

static PyObject *quantized_numpy(PyObject *self, PyObject *unused) {
    PyObject *values = quantized_values(self, AQ_DTYPE_F32), *made = NULL;
    if (values) made = array_numpy(values, unused);
    Py_XDECREF(values);
    return made;
}

static PyObject *quantized_dlpack(PyObject *self, PyObject *args, PyObject *kwargs) {
    PyObject *values = quantized_values(self, AQ_DTYPE_F32), *made = NULL;
    if (values) made = array_dlpack(values, args, kwargs);
    Py_XDECREF(values);
    return made;
}

static PyObject *quantized_arrow_schema(PyObject *object, PyObject *unused) {
    const Quantized *self = (const Quantized *)object;
    Array shape_only; /* the schema depends on dtype and shape alone */
    memset(&shape_only, 0, sizeof shape_only);
    shape_only.row = dtype_row(AQ_DTYPE_F32);
    shape_only.ndim = self->ndim;
    memcpy(shape_only.shape, self->shape, sizeof self->shape);
    return array_arrow_schema((PyObject *)&shape_only, unused);
}

static PyObject *quantized_arrow(PyObject *self, PyObject *args, PyObject *kwargs) {
    PyObject *values = quantized_values(self, AQ_DTYPE_F32), *made = NULL;
    if (values) made = array_arrow(values, args, kwargs);
    Py_XDECREF(values);
    return made;
}

static Py_ssize_t quantized_length(PyObject *object) {
    const Quantized *self = (const Quantized *)object;
    if (self->ndim) return self->shape[0];
    PyErr_SetString(PyExc_TypeError, "a tensor of no dimensions has no length");
    return -1;
}

static PyObject *quantized_repr(PyObject *object) {
    const Quantized *self = (const Quantized *)object;
    PyObject *shape = shape_tuple(self->ndim, self->shape), *text;
    if (!shape) return NULL;
    text = PyUnicode_FromFormat("<arrowquant.QuantizedTensor %R %s, %u bits, groups of %u>", shape,
                                self->code_name, (unsigned)self->spec.bits,
                                (unsigned)self->spec.group_size);
    Py_DECREF(shape);
    return text;
}

static PyObject *quantized_shape(PyObject *self, void *unused) {
    (void)unused;
    return shape_tuple(((Quantized *)self)->ndim, ((Quantized *)self)->shape);
}

static PyObject *quantized_text(PyObject *object, void *which) {
    const Quantized *self = (const Quantized *)object;
    switch (*(const char *)which) {
    case 'c': return PyUnicode_FromString(self->code_name);
    case 'm': return PyUnicode_FromString(self->method);
    case 'p': return PyUnicode_FromString(aq_param_type_name(self->spec.params));
    default: return PyUnicode_FromString(self->dtype);
    }
}

static PyObject *quantized_integer(PyObject *object, void *which) {
    const Quantized *self = (const Quantized *)object;
    const aq_quant_layout *layout = &self->layout;
    switch (*(const char *)which) {
    case 'b': return PyLong_FromUnsignedLong(self->spec.bits);
    case 'g': return PyLong_FromUnsignedLong(self->spec.group_size);
    case 'd': return PyLong_FromLong(self->ndim);
    case 's': return PyLong_FromUnsignedLongLong((unsigned long long)(layout->rows * layout->cols));
    default:
        return PyLong_FromUnsignedLongLong((unsigned long long)(layout->code_bytes +
                                                                layout->param_bytes +
                                                                layout->extra_bytes));
    }
}

static PyObject *quantized_float(PyObject *object, void *which) {
    const Quantized *self = (const Quantized *)object;
    const aq_quant_layout *layout = &self->layout;
    switch (*(const char *)which) {
    case 'c': return PyFloat_FromDouble(self->cosine);
    case 's': return PyFloat_FromDouble(self->sqnr);
    case 'm': return PyFloat_FromDouble(self->max_error);
    default: {
        double weights = (double)layout->rows * (double)layout->cols;
        double bytes = (double)(layout->code_bytes + layout->param_bytes + layout->extra_bytes);
        return PyFloat_FromDouble(weights > 0 ? 8.0 * bytes / weights : 0.0);
    }
    }
}

/* Numbers where a group's parameters are all of one type, else (a scale and a code) their bytes; the
 * blocks of GGUF have none beside their codes. */
static PyObject *quantized_parameters(const State *state, const Quantized *self) {
    const aq_quant_layout *layout = &self->layout;
    aq_dtype dtype = self->spec.params == AQ_PARAM_F32    ? AQ_DTYPE_F32
                     : self->spec.params == AQ_PARAM_Q8   ? AQ_DTYPE_U8
                     : self->spec.params == AQ_PARAM_BF16 ? AQ_DTYPE_BF16 : AQ_DTYPE_F16;
    uint64_t each = layout->groups ? layout->row_param_bytes / layout->groups : 0;
    Py_ssize_t shape[3];
    if (self->spec.code == AQ_CODE_ZERO_POINT || each % aq_dtype_size(dtype) != 0) dtype = AQ_DTYPE_U8;
    shape[0] = (Py_ssize_t)layout->rows;
    shape[1] = (Py_ssize_t)layout->groups;
    shape[2] = (Py_ssize_t)(each / aq_dtype_size(dtype));
    return array_of_file(state, self->block, each ? self->params : self->codes,
                         each ? dtype : AQ_DTYPE_U8, 3, shape);
}

static PyObject *quantized_part(PyObject *object, void *which) {
    const Quantized *self = (const Quantized *)object;
    const aq_quant_layout *layout = &self->layout;
    const State *state = state_of_object(object);
    Py_ssize_t shape[2];
    shape[0] = (Py_ssize_t)layout->rows;
    switch (*(const char *)which) {
    case 'c':
        shape[1] = (Py_ssize_t)layout->row_code_bytes;
        return array_new(state, self->block, self->codes, AQ_DTYPE_U8, 2, shape, true);
    case 'q':
        shape[0] = (Py_ssize_t)layout->code_bytes;
        return array_new(state, self->block, self->codes, AQ_DTYPE_U8, 1, shape, true);
    case 'e':
        if (!self->extra) Py_RETURN_NONE;
        shape[1] = (Py_ssize_t)layout->row_extra_bytes / 2;
        return array_of_file(state, self->block, self->extra, AQ_DTYPE_F16, 2, shape);
    default: return quantized_parameters(state, self);
    }
}

static PyObject *quantized_figures(PyObject *object, void *which) {
    const Quantized *self = (const Quantized *)object;
    Py_ssize_t count = (Py_ssize_t)(self->layout.rows * self->layout.groups);
    PyObject *made = array_fresh(state_of_object(object), AQ_DTYPE_F32, 1, &count);
    float *out = made ? (float *)((Array *)made)->data : NULL;
    char kind = *(const char *)which;
    aq_status status;
    aq_error err;
    if (!made) return NULL;
    clear_error(&err, AQ_OK);
    Py_BEGIN_ALLOW_THREADS
    status = aq_quant_parameters(NULL, &self->spec, self->params, self->extra, self->layout.rows,
                                 self->layout.cols, kind == 's' ? out : NULL,
                                 kind == 'm' ? out : NULL, kind == 'z' ? out : NULL, &err);
    Py_END_ALLOW_THREADS
    if (status == AQ_OK) return made;
    Py_DECREF(made);
    return raise_error(&err);
}

/* The code and parameter type of these names; false with an exception when there are none. */
static bool spec_named(const char *code, const char *type, aq_quant_spec *spec) {
    static const aq_param_type types[] = { AQ_PARAM_F16, AQ_PARAM_F32, AQ_PARAM_Q8, AQ_PARAM_BF16 };
    bool known = false;
    size_t i;
    int c;
    for (c = 0; c < (int)AQ_CODE_COUNT; c++) {
        if (strcmp(aq_code_name((aq_code)c), code) != 0) continue;
        spec->code = (aq_code)c;
        known = true;
    }
    for (i = 0; known && i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(aq_param_type_name(types[i]), type) != 0) continue;
        spec->params = types[i];
        return true;
    }
    PyErr_Format(PyExc_ValueError, "there is no code %s with %s parameters", code, type);
    return false;
}

/* Rows and columns of a shape; false with an exception when it is none. */
static bool shape_named(PyObject *tuple, Quantized *out, uint64_t *rows, uint64_t *cols) {
    Py_ssize_t rank = PyTuple_Size(tuple), i;
    uint64_t count = 1;
    for (i = 0; i < rank && i < RANK_MAX; i++) {
        out->shape[i] = PyLong_AsSsize_t(PyTuple_GetItem(tuple, i));
        if (out->shape[i] < 0 || !aq_mul_u64(count, (uint64_t)out->shape[i], &count)) break;
    }
    if (i < rank) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "shape: out of range");
        return false;
    }
    out->ndim = (int)rank;
    *rows = rank > 1 ? (uint64_t)out->shape[0] : 1;
    *cols = *rows ? count / *rows : 0;
    return true;
}

/* Copies codes, params, extra and the method's name into one block. */
static bool parts_take(Quantized *self, const Py_buffer parts[3], const char *method) {
    const aq_quant_layout *layout = &self->layout;
    size_t code_room = ((size_t)layout->code_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    size_t param_room = ((size_t)layout->param_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    size_t length = strlen(method) + 1;
    char *memory;
    if ((uint64_t)parts[0].len != layout->code_bytes || (uint64_t)parts[1].len != layout->param_bytes ||
        (uint64_t)parts[2].len != layout->extra_bytes) {
        PyErr_SetString(PyExc_ValueError, "codes, params and extra do not have the sizes that shape, "
                        "bits and group size ask for");
        return false;
    }
    memory = (char *)aligned_memory(code_room + param_room + (size_t)layout->extra_bytes + length);
    self->block = memory ? block_new(memory) : NULL;
    if (!self->block) {
        aligned_free(memory);
        PyErr_NoMemory();
        return false;
    }
    if (parts[0].len) memcpy(memory, parts[0].buf, (size_t)parts[0].len);
    if (parts[1].len) memcpy(memory + code_room, parts[1].buf, (size_t)parts[1].len);
    if (parts[2].len) memcpy(memory + code_room + param_room, parts[2].buf, (size_t)parts[2].len);
    self->codes = memory;
    self->params = memory + code_room;
    self->extra = layout->extra_bytes ? memory + code_room + param_room : NULL;
    self->method = memory + code_room + param_room + (size_t)layout->extra_bytes;
    memcpy(memory + (self->method - memory), method, length);
    return true;
}

/* From the parts that another process had; all of them checked. */
static PyObject *quantized_from_parts(PyObject *module, PyObject *args) {
    PyObject *shape;
    Py_buffer parts[3];
    Quantized *self;
    aq_error err;
    const char *code, *type, *method, *dtype;
    unsigned int bits, group, states, rotation;
    uint64_t rows, cols;
    double cosine, sqnr, max_error;
    const DtypeRow *row;
    bool made = false;
    int i;
    memset(parts, 0, sizeof parts);
    clear_error(&err, AQ_OK);
    if (!PyArg_ParseTuple(args, "y*y*y*O!IIssdddssII:quantized_from_parts", &parts[0], &parts[1],
                          &parts[2], &PyTuple_Type, &shape, &bits, &group, &code, &type, &cosine,
                          &sqnr, &max_error, &method, &dtype, &states, &rotation))
        return NULL;
    self = (Quantized *)new_instance(state_of(module)->quantized);
    row = dtype_named(dtype);
    if (self && !row) PyErr_Format(PyExc_ValueError, "there is no dtype %s", dtype);
    if (self && row && spec_named(code, type, &self->spec) && shape_named(shape, self, &rows, &cols)) {
        self->spec.bits = bits;
        self->spec.group_size = group;
        self->spec.states = states;
        self->spec.rotation = rotation;
        self->sqnr = sqnr;
        self->cosine = cosine;
        self->max_error = max_error;
        self->code_name = aq_code_name(self->spec.code);
        self->dtype = row->name;
        if (aq_quantized_size(&self->spec, rows, cols, &self->layout, &err) != AQ_OK) raise_error(&err);
        else made = parts_take(self, parts, method);
    }
    if (!made) Py_CLEAR(self);
    for (i = 0; i < 3; i++) PyBuffer_Release(&parts[i]);
    return (PyObject *)self;
}

static PyObject *quantized_reduce(PyObject *object, PyObject *unused) {
    const Quantized *self = (const Quantized *)object;
    PyObject *module, *function, *made = NULL;
    const aq_quant_layout *layout = &self->layout;
    (void)unused;
    if ((int)self->spec.code >= (int)AQ_CODE_COUNT)
        return PyErr_Format(PyExc_TypeError, "a tensor stored as %s cannot be pickled", self->code_name);
    module = PyImport_ImportModule("arrowquant._core");
    function = module ? PyObject_GetAttrString(module, "quantized_from_parts") : NULL;
    if (function)
        made = Py_BuildValue("N(y#y#y#NIIssdddssII)", function, self->codes, (Py_ssize_t)layout->code_bytes,
                             self->params ? self->params : "", (Py_ssize_t)layout->param_bytes,
                             self->extra ? self->extra : "", (Py_ssize_t)layout->extra_bytes,
                             shape_tuple(self->ndim, self->shape), self->spec.bits,
                             self->spec.group_size, self->code_name,
                             aq_param_type_name(self->spec.params), self->cosine, self->sqnr,
                             self->max_error, self->method, self->dtype, self->spec.states,
                             self->spec.rotation);
    Py_XDECREF(module);
    return made;
}

static PyMethodDef quantized_methods[] = {
    { "dequantize", (PyCFunction)(void (*)(void))quantized_dequantize, METH_VARARGS | METH_KEYWORDS, "dequantize($self, dtype='float32')\n--\n\nThe values as a new Array of float32, float16 or bfloat16." },
    { "numpy", quantized_numpy, METH_NOARGS, "numpy($self)\n--\n\nThe values as a float32 NumPy array." },
    { "__dlpack__", (PyCFunction)(void (*)(void))quantized_dlpack, METH_VARARGS | METH_KEYWORDS, "__dlpack__($self, *, stream=None, max_version=None, dl_device=None, copy=None)\n--\n\nA DLPack capsule of the float32 values." },
    { "__dlpack_device__", dlpack_device, METH_NOARGS, "__dlpack_device__($self)\n--\n\nThe CPU." },
    { "__arrow_c_schema__", quantized_arrow_schema, METH_NOARGS, "__arrow_c_schema__($self)\n--\n\nThe Arrow type of the values." },
    { "__arrow_c_array__", (PyCFunction)(void (*)(void))quantized_arrow, METH_VARARGS | METH_KEYWORDS, "__arrow_c_array__($self, requested_schema=None)\n--\n\nThe float32 values as an Arrow array." },
    { "__reduce__", quantized_reduce, METH_NOARGS, "__reduce__($self)\n--\n\nFor pickle." },
    { NULL, NULL, 0, NULL },
};

#define WHICH(text) ((void *)(uintptr_t)(text))
static PyGetSetDef quantized_members[] = {
    { "shape", quantized_shape, NULL, "shape of the original", NULL },
    { "ndim", quantized_integer, NULL, "number of axes", WHICH("d") },
    { "size", quantized_integer, NULL, "number of weights", WHICH("s") },
    { "bit_width", quantized_integer, NULL, "bits of a code: 2, 4 or 8, of a trellis 2, 3 or 4", WHICH("b") },
    { "group_size", quantized_integer, NULL, "weights that share a scale", WHICH("g") },
    { "nbytes", quantized_integer, NULL, "bytes of codes and parameters", WHICH("n") },
    { "code", quantized_text, NULL, "how weights are coded: 'affine', 'symmetric', 'zero_point', 'residual', 'Q4_K', …", WHICH("c") },
    { "method", quantized_text, NULL, "how the codes were chosen, such as 'ptq'", WHICH("m") },
    { "parameter_type", quantized_text, NULL, "'F16', 'F32', 'BF16' or 'Q8'", WHICH("p") },
    { "dtype", quantized_text, NULL, "element type of the original", WHICH("d") },
    { "cosine_similarity", quantized_float, NULL, "with the original", WHICH("c") },
    { "sqnr_db", quantized_float, NULL, "signal to quantization noise in dB", WHICH("s") },
    { "max_error", quantized_float, NULL, "largest absolute error; nan when not recorded", WHICH("m") },
    { "bits_per_weight", quantized_float, NULL, "codes and parameters together", WHICH("b") },
    { "codes", quantized_part, NULL, "packed codes, uint8 [rows, bytes]; shared memory", WHICH("c") },
    { "quantized_data", quantized_part, NULL, "the same as one row of bytes", WHICH("q") },
    { "params", quantized_part, NULL, "stored parameters [rows, groups, 0 to 2]; shared memory. GGUF's blocks have none beside their codes; of\nzero-point codes the bytes of scale and zero point", WHICH("p") },
    { "extra", quantized_part, NULL, "row parameters of 8-bit ones, else None", WHICH("e") },
    { "scales", quantized_figures, NULL, "scale of each group, float32", WHICH("s") },
    { "zero_points", quantized_figures, NULL, "zero point of each group, float32", WHICH("z") },
    { "mins", quantized_figures, NULL, "value of code 0 in each group, float32", WHICH("m") },
    { NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot quantized_slots[] = {
    { Py_tp_dealloc, (void *)quantized_dealloc },
    { Py_tp_repr, (void *)quantized_repr },
    { Py_tp_doc, WHICH("A quantized tensor. As a buffer, through DLPack or Arrow it gives its float32\nvalues, dequantized when they are asked for; codes and params are views of what is stored.") },
    { Py_tp_methods, quantized_methods },
    { Py_tp_getset, quantized_members },
    { Py_bf_getbuffer, (void *)quantized_getbuffer },
    { Py_mp_length, (void *)quantized_length },
    { 0, NULL },
};

static PyType_Spec quantized_spec = {
    "arrowquant._core.QuantizedTensor", sizeof(Quantized), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, quantized_slots
};

/* ================================================================ quantizing tensors */

typedef struct Layer {
    Input in;
    aq_quant_spec spec;
    aq_quant_layout layout;
    Block *block;
    char *codes, *params, *extra;
    Block *figures; /* scales, then zero points, when they are asked for */
    aq_quality quality;
    aq_status status;
    aq_error *err;     /* when it failed */
    PyObject *refused; /* the exception, when its weights could not be taken */
    bool done;
} Layer;

typedef struct Batch {
    Layer *layers;
    size_t count;
    PyObject *names, *objects; /* tuples, which nobody changes meanwhile */
    aq_context wide, narrow; /* all threads for one layer, one thread for each */
    const aq_context *asked; /* the caller's; may be NULL */
    uint32_t threads;
    uint64_t weights, large;   /* in all; a layer from here on gets all threads */
    long next, stop, finished, weights_done_mi; /* atomic; 2^20 weights */
    PyThread_type_lock ended;  /* held until all is done */
    long running;              /* atomic */
    bool keep_going, figures;
} Batch;

/* Codes, parameters and row parameters in one block. */
static aq_status layer_memory(Layer *layer, aq_error *err) {
    uint64_t code_room, param_room;
    char *memory;
    aq_status status = aq_quantized_size(&layer->spec, layer->in.rows, layer->in.cols,
                                         &layer->layout, err);
    if (status != AQ_OK) return status;
    code_room = (layer->layout.code_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    param_room = (layer->layout.param_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    block_release(layer->block);
    layer->block = NULL;
    memory = (char *)aligned_memory((size_t)(code_room + param_room + layer->layout.extra_bytes));
    layer->block = memory ? block_new(memory) : NULL;
    if (!layer->block) {
        aligned_free(memory);
        clear_error(err, AQ_ERR_OUT_OF_MEMORY);
        aq_format(err->message, sizeof err->message, "no memory for the quantized weights");
        return AQ_ERR_OUT_OF_MEMORY;
    }
    layer->codes = memory;
    layer->params = memory + code_room;
    layer->extra = layer->layout.extra_bytes ? memory + code_room + param_room : NULL;
    return AQ_OK;
}

/* Parameters that do not fit their type are stored wider, as the pipeline does. F32 always fits, so
 * what fails then is the weights' fault. */
static aq_status layer_quantize(Layer *layer, aq_context *context, aq_error *err) {
    const void *weights;
    void *owned;
    aq_status status = input_settle(context, &layer->in, &weights, &owned, err);
    while (status == AQ_OK) {
        status = layer_memory(layer, err);
        if (status != AQ_OK) break;
        status = aq_quantize(context, &layer->spec, weights, layer->in.dtype, layer->in.rows,
                             layer->in.cols, NULL, layer->codes, layer->params, layer->extra,
                             &layer->quality, err);
        if (status != AQ_ERR_QUANTIZATION || layer->spec.params == AQ_PARAM_F32) break;
        layer->spec.params = layer->spec.params == AQ_PARAM_Q8 ? AQ_PARAM_F16 : AQ_PARAM_F32;
        status = AQ_OK;
    }
    aligned_free(owned);
    return status;
}

static size_t figures_room(const Layer *layer) { /* bytes of one figure of all groups */
    size_t bytes = (size_t)(layer->layout.rows * layer->layout.groups) * sizeof(float);
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* The parameters of all groups as numbers: made by the thread that made the layer, not by the one
 * that holds the GIL. */
static aq_status layer_figures(Layer *layer, aq_context *context, aq_error *err) {
    size_t room = figures_room(layer);
    char *memory = (char *)aligned_memory(2 * room);
    layer->figures = memory ? block_new(memory) : NULL;
    if (!layer->figures) {
        aligned_free(memory);
        clear_error(err, AQ_ERR_OUT_OF_MEMORY);
        aq_format(err->message, sizeof err->message, "no memory for the scales");
        return AQ_ERR_OUT_OF_MEMORY;
    }
    return aq_quant_parameters(context, &layer->spec, layer->params, layer->extra, layer->in.rows,
                               layer->in.cols, (float *)(void *)memory, NULL,
                               (float *)(void *)(memory + room), err);
}

static void batch_run_layer(Batch *batch, size_t index, aq_context *context) {
    Layer *layer = &batch->layers[index];
    aq_error err;
    clear_error(&err, AQ_OK);
    if (!layer->done) {
        layer->status = layer_quantize(layer, context, &err);
        if (layer->status == AQ_OK && batch->figures)
            layer->status = layer_figures(layer, context, &err);
    }
    layer->done = true;
    if (layer->status != AQ_OK && !layer->refused) {
        err.status = layer->status;
        layer->err = (aq_error *)malloc(sizeof err);
        if (layer->err) *layer->err = err;
        block_release(layer->block);
        layer->block = NULL;
        if (!batch->keep_going || layer->status == AQ_ERR_CANCELLED) (void)ATOMIC_ADD(&batch->stop, 1);
    }
    (void)ATOMIC_ADD(&batch->finished, 1);
}

static bool batch_is_large(const Batch *batch, size_t index) {
    return batch->layers[index].in.count >= batch->large;
}

static void batch_work(Batch *batch) {
    for (;;) {
        long index = ATOMIC_ADD(&batch->next, 1) - 1;
        if ((size_t)index >= batch->count || ATOMIC_GET(&batch->stop)) return;
        if (!batch_is_large(batch, (size_t)index))
            batch_run_layer(batch, (size_t)index, &batch->narrow);
    }
}

static void batch_end(Batch *batch) {
    PyThread_type_lock ended = batch->ended; /* the batch may be gone after the last step */
    if (ATOMIC_ADD(&batch->running, -1) == 0) PyThread_release_lock(ended);
}

static void batch_helper(void *user) {
    batch_work((Batch *)user);
    batch_end((Batch *)user);
}

/* The large layers one after the other with all threads, then one thread a layer. */
static void batch_drive(void *user) {
    Batch *batch = (Batch *)user;
    size_t i, small = 0;
    uint32_t t;
    for (i = 0; i < batch->count && !ATOMIC_GET(&batch->stop); i++) {
        if (batch_is_large(batch, i)) batch_run_layer(batch, i, &batch->wide);
        else small++;
    }
    for (t = 1; t < batch->threads && t < small; t++) {
        (void)ATOMIC_ADD(&batch->running, 1);
        if (PyThread_start_new_thread(batch_helper, batch) == NO_THREAD) {
            (void)ATOMIC_ADD(&batch->running, -1);
            break;
        }
    }
    batch_work(batch);
    batch_end(batch);
}

static void batch_stop(Batch *batch) {
    (void)ATOMIC_ADD(&batch->stop, 1);
    aq_context_cancel(&batch->wide);
    aq_context_cancel(&batch->narrow);
}

static const char *batch_name(Batch *batch, size_t index) {
    PyObject *name = PyTuple_GetItem(batch->names, (Py_ssize_t)index);
    const char *text = name ? PyUnicode_AsUTF8AndSize(name, NULL) : NULL;
    if (!text) PyErr_Clear();
    return text ? text : "";
}

/* Waits for the threads; looks after signals, cancellation and progress meanwhile. */
static void batch_wait(Batch *batch, Job *job, double started) {
    long told = -1;
    bool over = false;
    while (!over) {
        long finished;
        Py_BEGIN_ALLOW_THREADS
        over = PyThread_acquire_lock_timed(batch->ended, POLL_MICROSECONDS, 0) == PY_LOCK_ACQUIRED;
        Py_END_ALLOW_THREADS
        if (over || job->raised) continue;
        if (aq_is_cancelled(batch->asked)) batch_stop(batch);
        finished = ATOMIC_GET(&batch->finished);
        if (finished != told || finished == 0) {
            double elapsed = aq_clock_seconds() - started, share;
            told = finished;
            share = (double)finished / (double)batch->count;
            job->raised = !tell(job, share, "quantize",
                                (size_t)finished < batch->count ? batch_name(batch, (size_t)finished) : "",
                                (uint64_t)finished, batch->count, elapsed,
                                share > 0 ? elapsed * (1 - share) / share : (double)NAN);
        } else if (PyErr_CheckSignals() != 0) {
            job->raised = true;
        }
        if (job->raised) batch_stop(batch);
    }
}

static bool batch_execute(Batch *batch, Job *job) {
    double started = aq_clock_seconds();
    size_t i;
    if (batch->weights <= INLINE_WEIGHTS) { /* sooner done than a thread has started */
        PyThreadState *thread = PyEval_SaveThread();
        for (i = 0; i < batch->count && !batch->stop; i++) batch_run_layer(batch, i, &batch->wide);
        PyEval_RestoreThread(thread);
    } else {
        batch->ended = PyThread_allocate_lock();
        if (!batch->ended) return PyErr_NoMemory(), false;
        PyThread_acquire_lock(batch->ended, WAIT_LOCK);
        batch->running = 1;
        if (PyThread_start_new_thread(batch_drive, batch) == NO_THREAD) {
            Py_BEGIN_ALLOW_THREADS
            batch_drive(batch);
            Py_END_ALLOW_THREADS
        }
        batch_wait(batch, job, started);
        (void)ATOMIC_GET(&batch->running); /* pairs with batch_end, whatever the lock is made of */
        PyThread_release_lock(batch->ended);
        PyThread_free_lock(batch->ended);
    }
    if (!job->raised && (PyErr_Occurred() || PyErr_CheckSignals() != 0)) job->raised = true;
    if (!job->raised)
        job->raised = !tell(job, 1.0, "quantize", "", batch->count, batch->count,
                            aq_clock_seconds() - started, 0.0);
    return !job->raised;
}

static PyObject *layer_result(const State *state, Layer *layer) {
    Quantized *made;
    int i;
    if (layer->status != AQ_OK) return NULL;
    made = (Quantized *)new_instance(state->quantized);
    if (!made) return NULL;
    made->block = layer->block;
    layer->block = NULL;
    made->codes = layer->codes;
    made->params = layer->params;
    made->extra = layer->extra;
    made->spec = layer->spec;
    made->layout = layer->layout;
    made->cosine = aq_quality_cosine(&layer->quality);
    made->sqnr = aq_quality_sqnr_db(&layer->quality);
    made->max_error = layer->quality.max_error;
    made->code_name = aq_code_name(layer->spec.code);
    made->method = layer->spec.code == AQ_CODE_TRELLIS ? "trellis" : "ptq";
    made->dtype = dtype_row(layer->in.dtype)->name;
    made->ndim = layer->in.ndim;
    for (i = 0; i < made->ndim; i++) made->shape[i] = (Py_ssize_t)layer->in.shape[i];
    return (PyObject *)made;
}

/* (tensor, scales, zero points) */
static PyObject *layer_record(const State *state, Layer *layer) {
    Py_ssize_t count = (Py_ssize_t)(layer->layout.rows * layer->layout.groups);
    char *figures = (char *)layer->figures->memory;
    PyObject *scales = array_new(state, layer->figures, figures, AQ_DTYPE_F32, 1, &count, false);
    PyObject *zeros = array_new(state, layer->figures, figures + figures_room(layer), AQ_DTYPE_F32, 1,
                                &count, false);
    PyObject *tensor = layer_result(state, layer), *made = NULL;
    if (scales && zeros && tensor) made = PyTuple_Pack(3, tensor, scales, zeros);
    Py_XDECREF(scales);
    Py_XDECREF(zeros);
    Py_XDECREF(tensor);
    return made;
}

/* The exception of a layer that failed, with its name. */
static PyObject *layer_exception(Batch *batch, size_t index) {
    Layer *layer = &batch->layers[index];
    const char *name = batch_name(batch, index);
    aq_error err, *found = layer->err ? layer->err : &err;
    char message[sizeof err.message];
    if (layer->refused) return Py_NewRef(layer->refused);
    clear_error(&err, layer->status);
    aq_format(message, sizeof message, "%s: %s", name, found->message);
    memcpy(found->message, message, sizeof message);
    aq_format(found->tensor, sizeof found->tensor, "%s", name);
    return exception_of(found);
}

static PyObject *batch_results(const State *state, Batch *batch) {
    PyObject *list = PyList_New((Py_ssize_t)batch->count), *item;
    size_t i;
    for (i = 0; list && i < batch->count; i++) { /* the lowest index that failed is the one */
        Layer *layer = &batch->layers[i];
        if (!layer->done || layer->status == AQ_OK || batch->keep_going) continue;
        if (layer->status == AQ_ERR_CANCELLED && !aq_is_cancelled(&batch->wide)) continue;
        item = layer_exception(batch, i);
        if (item) PyErr_SetObject((PyObject *)Py_TYPE(item), item);
        Py_XDECREF(item);
        Py_CLEAR(list);
    }
    for (i = 0; list && i < batch->count; i++) {
        if (!batch->layers[i].done) { /* cancelled before its turn */
            batch->layers[i].status = AQ_ERR_CANCELLED;
            item = layer_exception(batch, i);
            if (item) PyErr_SetObject((PyObject *)Py_TYPE(item), item);
            Py_XDECREF(item);
            Py_CLEAR(list);
            break;
        }
        item = batch->layers[i].status != AQ_OK ? layer_exception(batch, i)
               : batch->figures                 ? layer_record(state, &batch->layers[i])
                                                : layer_result(state, &batch->layers[i]);
        if (!item || PyList_SetItem(list, (Py_ssize_t)i, item) != 0) Py_CLEAR(list);
    }
    return list;
}

/* As in a model: of few rows, steps err less than a trellis. */
static aq_quant_spec spec_of_layer(const aq_quant_spec *asked, uint64_t rows, bool symmetric) {
    aq_quant_spec spec = *asked;
    if (spec.code != AQ_CODE_TRELLIS || aq_native_trellis_rows(rows)) return spec;
    spec.code = symmetric ? AQ_CODE_SYMMETRIC : AQ_CODE_AFFINE;
    spec.states = spec.rotation = 0;
    if (spec.bits == 3) spec.bits = 4;
    return spec;
}

static bool batch_inputs(Batch *batch, const aq_quant_spec *spec, bool symmetric) {
    size_t i;
    for (i = 0; i < batch->count; i++) {
        Layer *layer = &batch->layers[i];
        PyObject *name = PyTuple_GetItem(batch->names, (Py_ssize_t)i);
        PyObject *object = PyTuple_GetItem(batch->objects, (Py_ssize_t)i), *type, *trace;
        if (PyErr_CheckSignals() != 0) return false;
        if (!PyUnicode_Check(name)) {
            PyErr_Format(PyExc_TypeError, "names of layers must be str, found %R", Py_TYPE(name));
            return false;
        }
        if (input_from(&layer->in, object, name) == 0) {
            layer->spec = spec_of_layer(spec, layer->in.rows, symmetric);
            batch->weights += layer->in.count;
            continue;
        }
        if (!batch->keep_going || !PyErr_ExceptionMatches(PyExc_Exception)) return false;
        PyErr_Fetch(&type, &layer->refused, &trace);
        PyErr_NormalizeException(&type, &layer->refused, &trace);
        Py_XDECREF(type);
        Py_XDECREF(trace);
        input_free(&layer->in);
        layer->status = AQ_ERR_ARGUMENT;
        layer->done = true;
    }
    return true;
}

static PyObject *quantize_batch(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *keys[] = { "names", "weights", "bit_width", "group_size", "symmetric",
                            "parameter_bits", "num_threads", "context", "progress", "keep_going",
                            "records", "trellis_states", NULL };
    PyObject *names, *objects, *context = Py_None, *progress = Py_None, *result = NULL;
    unsigned int bits, group, parameter_bits = 16, threads = 0, states = 0;
    int symmetric = 0, keep_going = 0, records = 0;
    const State *state = state_of(module);
    aq_quant_spec spec;
    Batch batch;
    Job job;
    size_t i;
    memset(&batch, 0, sizeof batch);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!II|pIIOOppI:quantize_batch", keys, &PyList_Type,
                                     &names, &PyList_Type, &objects, &bits, &group, &symmetric,
                                     &parameter_bits, &threads, &context, &progress, &keep_going,
                                     &records, &states))
        return NULL;
    memset(&spec, 0, sizeof spec);
    spec.bits = bits;
    spec.group_size = group;
    spec.code = symmetric ? AQ_CODE_SYMMETRIC : AQ_CODE_AFFINE;
    spec.params = parameter_bits == 8 && !states ? AQ_PARAM_Q8 : AQ_PARAM_F16;
    if (states) {
        spec.code = AQ_CODE_TRELLIS;
        spec.states = states;
        spec.rotation = 1; /* the seed of the pipeline */
    }
    batch.names = PyList_AsTuple(names);
    batch.objects = PyList_AsTuple(objects);
    if (!batch.names || !batch.objects) goto end;
    batch.count = (size_t)PyTuple_Size(batch.names);
    if (PyTuple_Size(batch.objects) != (Py_ssize_t)batch.count) {
        PyErr_SetString(PyExc_ValueError, "names and weights must have the same length");
        goto end;
    }
    if (!context_of_call(state, context, threads, &batch.wide, &batch.asked)) goto end;
    batch.narrow = batch.wide;
    batch.narrow.num_threads = 1;
    batch.figures = records != 0;
    batch.threads = threads ? threads : aq_core_count();
    batch.keep_going = keep_going != 0;
    batch.layers = (Layer *)calloc(batch.count ? batch.count : 1, sizeof(Layer));
    job_begin(&job, NULL, NULL, progress);
    if (!batch.layers) PyErr_NoMemory();
    else if (batch_inputs(&batch, &spec, symmetric != 0)) {
        batch.large = batch.weights / (4 * (uint64_t)batch.threads) + 1;
        if (batch_execute(&batch, &job)) result = batch_results(state, &batch);
    }
end:
    for (i = 0; batch.layers && i < batch.count; i++) {
        input_free(&batch.layers[i].in);
        block_release(batch.layers[i].block);
        block_release(batch.layers[i].figures);
        free(batch.layers[i].err);
        Py_XDECREF(batch.layers[i].refused);
    }
    free(batch.layers);
    Py_XDECREF(batch.names);
    Py_XDECREF(batch.objects);
    return result;
}

/* ================================================================ Config */

/* The fields of aq_config by their names; DiffusionQuantConfig is built on it. The lock is held for
 * moments only and never while Python runs, so that it also serves without a GIL. */
typedef struct Config {
    PyObject_HEAD
    aq_config config;
    PyThread_type_lock lock;
} Config;

static PyObject *config_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    Config *self = (Config *)new_instance(type);
    (void)args;
    (void)kwargs;
    if (!self) return NULL;
    self->config = aq_config_from_profile(AQ_PROFILE_LOCAL);
    self->lock = PyThread_allocate_lock();
    if (self->lock) return (PyObject *)self;
    Py_DECREF(self);
    return PyErr_NoMemory();
}

static void config_dealloc(PyObject *self) {
    aq_config_free(&((Config *)self)->config);
    if (((Config *)self)->lock) PyThread_free_lock(((Config *)self)->lock);
    free_instance(self);
}

static void config_lock(Config *self) { PyThread_acquire_lock(self->lock, WAIT_LOCK); }
static void config_unlock(Config *self) { PyThread_release_lock(self->lock); }

static PyObject *none_or_error(aq_status status, const aq_error *err) {
    if (status != AQ_OK) return raise_error(err);
    Py_RETURN_NONE;
}

static PyObject *config_get(PyObject *object, PyObject *args) {
    Config *self = (Config *)object;
    const char *name;
    char *text = NULL;
    size_t size = 0;
    aq_status status;
    aq_error err;
    clear_error(&err, AQ_OK);
    if (!PyArg_ParseTuple(args, "s:_get", &name)) return NULL;
    config_lock(self);
    status = aq_config_get(NULL, &self->config, name, &text, &size, &err);
    config_unlock(self);
    return status == AQ_OK ? take_text(NULL, text, size) : raise_error(&err);
}

static PyObject *config_set(PyObject *object, PyObject *args) {
    Config *self = (Config *)object;
    const char *name, *value;
    aq_status status;
    aq_error err;
    clear_error(&err, AQ_OK);
    if (!PyArg_ParseTuple(args, "ss:_set", &name, &value)) return NULL;
    config_lock(self);
    status = aq_config_set(&self->config, name, value, &err);
    config_unlock(self);
    return none_or_error(status, &err);
}

/* Names of the fields that somebody has set: they survive a change of profile. */
static PyObject *config_explicit(PyObject *object, PyObject *unused) {
    Config *self = (Config *)object;
    PyObject *list = PyList_New(0), *name;
    aq_config_field field;
    uint64_t bits;
    size_t i;
    (void)unused;
    config_lock(self);
    bits = self->config.explicit_fields;
    config_unlock(self);
    for (i = 0; list && aq_config_field_at(i, &field); i++) {
        if (!(bits >> i & 1u)) continue;
        name = PyUnicode_FromString(field.name);
        if (!name || PyList_Append(list, name) != 0) Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

static void config_replace(Config *self, const aq_config *config) {
    aq_config old;
    config_lock(self);
    old = self->config;
    self->config = *config;
    config_unlock(self);
    aq_config_free(&old);
}

static bool config_clone(PyObject *object, aq_config *out) {
    Config *self = (Config *)object;
    aq_status status;
    aq_error err;
    clear_error(&err, AQ_OK);
    config_lock(self);
    status = aq_config_clone(NULL, &self->config, out, &err);
    config_unlock(self);
    if (status != AQ_OK) raise_error(&err);
    return status == AQ_OK;
}

static PyObject *config_load(PyObject *self, PyObject *args) {
    PyObject *path;
    aq_config loaded;
    aq_status status;
    aq_error err;
    clear_error(&err, AQ_OK);
    if (!PyArg_ParseTuple(args, "O&:_load", PyUnicode_FSConverter, &path)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = aq_config_load_yaml(NULL, PyBytes_AsString(path), &loaded, &err);
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    if (status == AQ_OK) config_replace((Config *)self, &loaded);
    return none_or_error(status, &err);
}

static PyObject *config_save(PyObject *self, PyObject *args) {
    PyObject *path;
    aq_config copy;
    aq_status status;
    aq_error err;
    clear_error(&err, AQ_OK);
    if (!PyArg_ParseTuple(args, "O&:_save", PyUnicode_FSConverter, &path)) return NULL;
    if (!config_clone(self, &copy)) {
        Py_DECREF(path);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = aq_config_save_yaml(NULL, &copy, PyBytes_AsString(path), &err);
    aq_config_free(&copy);
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    return none_or_error(status, &err);
}

static PyObject *config_text(PyObject *self, PyObject *unused) {
    char *text = NULL;
    size_t size = 0;
    aq_config copy;
    aq_status status;
    aq_error err;
    (void)unused;
    clear_error(&err, AQ_OK);
    if (!config_clone(self, &copy)) return NULL;
    status = aq_config_to_yaml(NULL, &copy, &text, &size, &err);
    aq_config_free(&copy);
    return status == AQ_OK ? take_text(NULL, text, size) : raise_error(&err);
}

static PyObject *config_environment(PyObject *object, PyObject *unused) {
    Config *self = (Config *)object;
    aq_status status;
    aq_error err;
    (void)unused;
    clear_error(&err, AQ_OK);
    config_lock(self);
    status = aq_config_apply_env(&self->config, &err);
    config_unlock(self);
    return none_or_error(status, &err);
}

static PyObject *config_validate(PyObject *object, PyObject *unused) {
    Config *self = (Config *)object;
    aq_status status;
    aq_error err;
    (void)unused;
    clear_error(&err, AQ_OK);
    config_lock(self);
    status = aq_config_validate(&self->config, &err);
    config_unlock(self);
    return none_or_error(status, &err);
}

static PyObject *config_equal(PyObject *self, PyObject *other) {
    aq_config copy;
    bool equal;
    if (!config_clone(other, &copy)) return NULL;
    config_lock((Config *)self);
    equal = aq_config_equal(&((Config *)self)->config, &copy);
    config_unlock((Config *)self);
    aq_config_free(&copy);
    return PyBool_FromLong(equal);
}

static PyObject *config_compare(PyObject *self, PyObject *other, int operation) {
    newfunc made_by = (newfunc)PyType_GetSlot(Py_TYPE(other), Py_tp_new);
    PyObject *equal;
    if ((operation != Py_EQ && operation != Py_NE) || made_by != config_new) Py_RETURN_NOTIMPLEMENTED;
    equal = config_equal(self, other);
    if (!equal || operation == Py_EQ) return equal;
    Py_DECREF(equal);
    return PyBool_FromLong(equal != Py_True);
}

static PyMethodDef config_methods[] = {
    { "_get", config_get, METH_VARARGS, "_get($self, name, /)\n--\n\nThe value of a field as JSON." },
    { "_set", config_set, METH_VARARGS, "_set($self, name, value, /)\n--\n\nSets a field from JSON or YAML." },
    { "_explicit", config_explicit, METH_NOARGS, "_explicit($self, /)\n--\n\nNames of the fields that have been set." },
    { "_load", config_load, METH_VARARGS, "_load($self, path, /)\n--\n\nReplaces all fields by those of a YAML file." },
    { "_save", config_save, METH_VARARGS, "_save($self, path, /)\n--\n\nWrites a YAML file." },
    { "_text", config_text, METH_NOARGS, "_text($self, /)\n--\n\nThe config as YAML." },
    { "apply_env_overrides", config_environment, METH_NOARGS, "apply_env_overrides($self, /)\n--\n\nTakes ARROW_QUANT_BIT_WIDTH and its kin from the environment, in place.\n\nRaises:\n    ConfigurationError: a variable has a bad value; nothing has changed." },
    { "validate", config_validate, METH_NOARGS, "validate($self, /)\n--\n\nChecks every field.\n\nRaises:\n    ConfigurationError: naming the field, what it may be, and what it is." },
    { NULL, NULL, 0, NULL },
};

static PyType_Slot config_slots[] = {
    { Py_tp_new, (void *)config_new },
    { Py_tp_dealloc, (void *)config_dealloc },
    { Py_tp_doc, WHICH("The fields of a configuration by name.") },
    { Py_tp_methods, config_methods },
    { Py_tp_richcompare, (void *)config_compare },
    { Py_tp_hash, (void *)PyObject_HashNotImplemented },
    { 0, NULL },
};

static PyType_Spec config_spec = { "arrowquant._core.Config", sizeof(Config), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, config_slots };

static bool is_config(const State *state, PyObject *object) {
    int is = PyObject_IsInstance(object, (PyObject *)state->config);
    if (is == 0) PyErr_Format(PyExc_TypeError, "config: expected a DiffusionQuantConfig, found %R",
                              Py_TYPE(object));
    return is == 1;
}

/* [(name, type, environment variable, doc)] in the order of the table. */
static PyObject *config_fields(PyObject *module, PyObject *unused) {
    PyObject *list = PyList_New(0), *row;
    aq_config_field field;
    size_t i;
    (void)module;
    (void)unused;
    for (i = 0; list && aq_config_field_at(i, &field); i++) {
        row = Py_BuildValue("(ssss)", field.name, field.type, field.environment, field.doc);
        if (!row || PyList_Append(list, row) != 0) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

/* ================================================================ Model */

/* The lock is held for moments only, never while Python runs; it also serves without a GIL, where one
 * thread may close what another reads. */
typedef struct Model {
    PyObject_HEAD
    Block *block; /* NULL: closed */
    PyThread_type_lock lock;
} Model;

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "path", NULL };
    PyObject *path;
    Model *self;
    aq_status status;
    aq_error err;
    clear_error(&err, AQ_OK);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&:Model", names, PyUnicode_FSConverter, &path))
        return NULL;
    self = (Model *)new_instance(type);
    if (self) {
        self->lock = PyThread_allocate_lock();
        self->block = block_new(NULL);
        if (!self->lock || !self->block) {
            PyErr_NoMemory();
            Py_CLEAR(self);
        }
    }
    if (self) self->block->context = make_context(0);
    if (self && !self->block->context) Py_CLEAR(self);
    if (self) {
        Py_BEGIN_ALLOW_THREADS
        status = aq_model_open(self->block->context, PyBytes_AsString(path), &self->block->model, &err);
        Py_END_ALLOW_THREADS
        if (status != AQ_OK) {
            raise_error(&err);
            Py_CLEAR(self);
        }
    }
    Py_DECREF(path);
    return (PyObject *)self;
}

static void model_dealloc(PyObject *self) {
    block_release(((Model *)self)->block);
    if (((Model *)self)->lock) PyThread_free_lock(((Model *)self)->lock);
    free_instance(self);
}

/* The opened files, to be given back by block_release: another thread may close the model meanwhile. */
static Block *model_block(PyObject *object) {
    Model *self = (Model *)object;
    Block *block;
    PyThread_acquire_lock(self->lock, WAIT_LOCK);
    block = self->block;
    if (block) block_retain(block);
    PyThread_release_lock(self->lock);
    if (!block) PyErr_SetString(PyExc_ValueError, "the model is closed");
    return block;
}

static PyObject *model_close(PyObject *object, PyObject *unused) {
    Model *self = (Model *)object;
    Block *block;
    (void)unused;
    PyThread_acquire_lock(self->lock, WAIT_LOCK);
    block = self->block;
    self->block = NULL;
    PyThread_release_lock(self->lock);
    block_release(block);
    Py_RETURN_NONE;
}

static PyObject *model_names(PyObject *self, PyObject *unused) {
    Block *block = model_block(self);
    const aq_model *model = block ? block->model : NULL;
    PyObject *list = model ? PyList_New((Py_ssize_t)model->tensor_count) : NULL, *name;
    size_t i;
    (void)unused;
    for (i = 0; list && i < model->tensor_count; i++) {
        name = PyUnicode_FromString(model->tensors[i].name);
        if (!name || PyList_SetItem(list, (Py_ssize_t)i, name) != 0) Py_CLEAR(list);
    }
    block_release(block);
    return list;
}

static bool model_shape(const aq_tensor *tensor, Py_ssize_t shape[RANK_MAX]) {
    uint32_t i;
    if (tensor->rank > RANK_MAX) {
        PyErr_Format(PyExc_ValueError, "%s: has %u axes, at most 32 can be shown", tensor->name,
                     (unsigned)tensor->rank);
        return false;
    }
    for (i = 0; i < tensor->rank; i++) shape[i] = (Py_ssize_t)tensor->shape[i];
    return true;
}

static PyObject *model_quantized(const State *state, Block *block, const aq_tensor *tensor) {
    Quantized *made;
    Py_ssize_t shape[RANK_MAX];
    if (!model_shape(tensor, shape)) return NULL;
    made = (Quantized *)new_instance(state->quantized);
    if (!made) return NULL;
    made->block = block;
    block_retain(block);
    made->tensor = tensor;
    made->codes = tensor->codes;
    made->params = tensor->params;
    made->extra = tensor->extra;
    made->spec = tensor->spec;
    made->layout = tensor->layout;
    made->cosine = tensor->cosine_similarity;
    made->sqnr = tensor->sqnr_db;
    made->max_error = (double)NAN;
    made->code_name = tensor->code_name;
    made->method = tensor->method ? tensor->method : "ptq";
    made->dtype = dtype_row(tensor->dtype)->name;
    made->ndim = (int)tensor->rank;
    memcpy(made->shape, shape, tensor->rank * sizeof shape[0]);
    if ((int)tensor->spec.code >= (int)AQ_CODE_COUNT) { /* blocks that are not decoded here: their bytes */
        made->layout.rows = tensor->rows;
        made->layout.cols = tensor->cols;
        made->layout.code_bytes = tensor->bytes;
        made->layout.row_code_bytes = tensor->rows ? tensor->bytes / tensor->rows : 0;
    }
    return (PyObject *)made;
}

static PyObject *tensor_of(const State *state, Block *block, PyObject *name) {
    const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8AndSize(name, NULL) : NULL;
    const aq_tensor *tensor = text ? aq_model_find(block->model, text) : NULL;
    Py_ssize_t shape[RANK_MAX];
    if (!tensor) {
        if (!PyErr_Occurred()) PyErr_SetObject(PyExc_KeyError, name);
        return NULL;
    }
    if (tensor->quantized) return model_quantized(state, block, tensor);
    if (!model_shape(tensor, shape)) return NULL;
    return array_of_file(state, block, tensor->data, tensor->dtype, (int)tensor->rank, shape);
}

static PyObject *model_tensor(PyObject *self, PyObject *args) {
    Block *block = model_block(self);
    PyObject *name, *made = NULL;
    if (block && PyArg_ParseTuple(args, "O:tensor", &name))
        made = tensor_of(state_of_object(self), block, name);
    block_release(block);
    return made;
}

/* What there is to know of a tensor without reading it. */
static PyObject *tensor_described(const aq_tensor *tensor) {
    Py_ssize_t dims[RANK_MAX];
    PyObject *shape = model_shape(tensor, dims) ? shape_tuple((int)tensor->rank, dims) : NULL;
    if (!shape) return NULL;
    if (!tensor->quantized)
        return Py_BuildValue("{sss" "NsssKss}", "name", tensor->name, "shape", shape, "dtype",
                             aq_dtype_name(tensor->dtype), "bytes", (unsigned long long)tensor->bytes,
                             "file", tensor->file);
    return Py_BuildValue("{sssNsssKsssIsIsssssssdsd}", "name", tensor->name, "shape", shape, "dtype",
                         aq_dtype_name(tensor->dtype), "bytes", (unsigned long long)tensor->bytes,
                         "file", tensor->file, "bits", tensor->spec.bits, "group_size",
                         tensor->spec.group_size, "code", tensor->code_name, "method",
                         tensor->method ? tensor->method : "ptq", "params",
                         aq_param_type_name(tensor->spec.params), "cosine_similarity",
                         tensor->cosine_similarity, "sqnr_db", tensor->sqnr_db);
}

static PyObject *model_describe(PyObject *self, PyObject *args) {
    Block *block = model_block(self);
    const aq_tensor *tensor;
    PyObject *made = NULL;
    const char *name;
    if (block && PyArg_ParseTuple(args, "s:describe", &name)) {
        tensor = aq_model_find(block->model, name);
        if (tensor) made = tensor_described(tensor);
        else PyErr_Format(PyExc_KeyError, "%s", name);
    }
    block_release(block);
    return made;
}

static aq_status work_verify(Job *job) {
    return aq_model_verify(job->context, job->model, job_progress, job, &job->number, &job->err);
}

static PyObject *model_verify(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "progress", NULL };
    PyObject *progress = Py_None;
    const aq_context *asked;
    aq_context context;
    Block *block;
    Job job;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:verify", names, &progress) ||
        !context_of_call(state_of_object(self), Py_None, 0, &context, &asked))
        return NULL;
    block = model_block(self);
    if (!block) return NULL;
    job_begin(&job, &context, asked, progress);
    job.model = block->model;
    (void)job_run(&job, work_verify);
    block_release(block);
    return job_good(&job) ? PyLong_FromSize_t(job.number) : NULL;
}

static PyObject *model_member(PyObject *self, void *which) {
    Block *block = model_block(self);
    const aq_model *model = block ? block->model : NULL;
    PyObject *made = NULL;
    if (!model) return NULL;
    switch (*(const char *)which) {
    case 'p': made = PyUnicode_DecodeFSDefault(model->path); break;
    case 'm': made = PyUnicode_FromString(aq_modality_name(model->modality)); break;
    case 'q': made = PyBool_FromLong(model->quantized); break;
    default: made = PyLong_FromUnsignedLongLong((unsigned long long)model->weight_bytes);
    }
    block_release(block);
    return made;
}

static PyMethodDef model_methods[] = {
    { "close", model_close, METH_NOARGS, "close($self, /)\n--\n\nLets go of the files; tensors that are in use keep them." },
    { "names", model_names, METH_NOARGS, "names($self, /)\n--\n\nNames of the tensors, sorted." },
    { "tensor", model_tensor, METH_VARARGS, "tensor($self, name, /)\n--\n\nA QuantizedTensor, or the Array of a kept tensor.\n\nRaises:\n    KeyError: there is none of that name." },
    { "describe", model_describe, METH_VARARGS, "describe($self, name, /)\n--\n\nA dict of what the file says about a tensor." },
    { "verify", (PyCFunction)(void (*)(void))model_verify, METH_VARARGS | METH_KEYWORDS, "verify($self, progress=None)\n--\n\nCompares every stored tensor with its checksum; returns how many had one.\n\nRaises:\n    MetadataError: the first that differs." },
    { NULL, NULL, 0, NULL },
};

static PyGetSetDef model_members[] = {
    { "path", model_member, NULL, "as it was opened", WHICH("p") },
    { "modality", model_member, NULL, "'text', 'code', 'image', 'audio' or 'unknown'", WHICH("m") },
    { "quantized", model_member, NULL, "whether this library wrote it", WHICH("q") },
    { "weight_bytes", model_member, NULL, "bytes of all weight files", WHICH("w") },
    { NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot model_slots[] = {
    { Py_tp_new, (void *)model_new },
    { Py_tp_dealloc, (void *)model_dealloc },
    { Py_tp_doc, WHICH("Model(path)\n--\n\nAn opened model folder or file.") },
    { Py_tp_methods, model_methods },
    { Py_tp_getset, model_members },
    { 0, NULL },
};

static PyType_Spec model_spec = { "arrowquant._core.Model", sizeof(Model), 0, Py_TPFLAGS_DEFAULT,
                                  model_slots };

/* ================================================================ Plan */

/* plan → execute → commit. One thread at a time: `busy` refuses a second. */
typedef struct Plan {
    PyObject_HEAD
    aq_context context;
    const aq_context *asked; /* of the keeper, else NULL */
    aq_plan *plan;
    PyObject *keeper; /* the Context, when it was given */
    long busy;
} Plan;

static bool plan_enter(Plan *self) {
    if (ATOMIC_ADD(&self->busy, 1) == 1) return true;
    (void)ATOMIC_ADD(&self->busy, -1);
    PyErr_SetString(PyExc_RuntimeError, "this plan is in use in another thread");
    return false;
}

static void plan_leave(Plan *self) { (void)ATOMIC_ADD(&self->busy, -1); }

/* Enters a plan that has not been closed. */
static bool plan_open(Plan *self) {
    if (!plan_enter(self)) return false;
    if (self->asked && aq_is_cancelled(self->asked)) aq_context_cancel(&self->context);
    if (self->plan) return true;
    plan_leave(self);
    PyErr_SetString(PyExc_ValueError, "the plan is closed");
    return false;
}

static aq_status work_plan(Job *job) {
    return aq_plan_create(job->context, job->first, job->config, &job->plan, &job->err);
}

static PyObject *plan_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "model_path", "config", "context", NULL };
    PyObject *path, *config = Py_None, *context = Py_None;
    const State *state = (const State *)PyType_GetModuleState(type);
    aq_config copy = aq_config_from_profile(AQ_PROFILE_LOCAL);
    Plan *self = NULL;
    Job job;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|OO:Plan", names, PyUnicode_FSConverter, &path,
                                     &config, &context))
        return NULL;
    if (state && (config == Py_None || (is_config(state, config) && config_clone(config, &copy))))
        self = (Plan *)new_instance(type);
    if (self && !context_of_call(state, context, 0, &self->context, &self->asked)) Py_CLEAR(self);
    if (self) {
        self->keeper = self->asked ? Py_NewRef(context) : NULL;
        job_begin(&job, &self->context, self->asked, NULL);
        job.first = PyBytes_AsString(path);
        job.config = &copy;
        (void)job_run(&job, work_plan);
        self->plan = job.plan;
        if (!job_good(&job)) Py_CLEAR(self);
    }
    aq_config_free(&copy);
    Py_DECREF(path);
    return (PyObject *)self;
}

static void plan_dealloc(PyObject *object) {
    Plan *self = (Plan *)object;
    Py_BEGIN_ALLOW_THREADS /* may remove a folder */
    aq_plan_destroy(self->plan);
    Py_END_ALLOW_THREADS
    Py_XDECREF(self->keeper);
    free_instance(object);
}

/* Removes what was executed and not committed; the plan is of no more use. */
static PyObject *plan_close(PyObject *object, PyObject *unused) {
    Plan *self = (Plan *)object;
    aq_plan *plan;
    (void)unused;
    if (!plan_enter(self)) return NULL;
    plan = self->plan;
    self->plan = NULL;
    Py_BEGIN_ALLOW_THREADS
    aq_plan_destroy(plan);
    Py_END_ALLOW_THREADS
    plan_leave(self);
    Py_RETURN_NONE;
}

static PyObject *plan_json(PyObject *object, PyObject *unused) {
    Plan *self = (Plan *)object;
    char *text = NULL;
    size_t size = 0;
    aq_status status;
    aq_error err;
    (void)unused;
    clear_error(&err, AQ_OK);
    if (!plan_open(self)) return NULL;
    status = aq_plan_to_json(&self->context, self->plan, &text, &size, &err);
    plan_leave(self);
    return status == AQ_OK ? take_text(&self->context, text, size) : raise_error(&err);
}

/* What can be made apart: the files that will be written, with the bytes that they are made from. */
static PyObject *plan_outputs(PyObject *object, PyObject *unused) {
    Plan *self = (Plan *)object;
    const aq_plan *plan;
    PyObject *list, *row;
    size_t i, j;
    (void)unused;
    if (!plan_open(self)) return NULL;
    plan = self->plan;
    list = PyList_New(0);
    for (i = 0; list && i < plan->output_count; i++) {
        const aq_plan_output *output = &plan->outputs[i];
        unsigned long long bytes = 0;
        for (j = 0; j < output->tensor_count; j++)
            bytes += (unsigned long long)plan->tensors[output->first_tensor + j].bytes;
        row = Py_BuildValue("(NK)", PyUnicode_DecodeFSDefault(output->path), bytes);
        if (!row || PyList_Append(list, row) != 0) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    plan_leave(self);
    return list;
}

static PyObject *plan_begin(PyObject *object, PyObject *args) {
    Plan *self = (Plan *)object;
    PyObject *path;
    const char *folder = NULL;
    aq_status status;
    aq_error err;
    clear_error(&err, AQ_OK);
    if (!PyArg_ParseTuple(args, "O&:begin", PyUnicode_FSConverter, &path)) return NULL;
    if (!plan_open(self)) {
        Py_DECREF(path);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = aq_plan_begin(&self->context, self->plan, PyBytes_AsString(path), &folder, &err);
    Py_END_ALLOW_THREADS
    plan_leave(self);
    Py_DECREF(path);
    return status == AQ_OK ? PyUnicode_DecodeFSDefault(folder) : raise_error(&err);
}

/* A long call on a plan; None when it went well. */
static PyObject *plan_run(Plan *self, PyObject *path, PyObject *progress, PyObject *watch,
                          size_t output, aq_status (*work)(Job *job)) {
    Job job;
    if (!plan_open(self)) return NULL;
    job_begin(&job, &self->context, self->asked, progress);
    job.plan = self->plan;
    job.first = PyBytes_AsString(path);
    job.watch = watch == Py_None ? NULL : watch;
    job.number = output;
    (void)job_run(&job, work);
    plan_leave(self);
    return job_good(&job) ? Py_NewRef(Py_None) : NULL;
}

static aq_status work_execute_output(Job *job) {
    return aq_plan_execute_output(job->context, job->plan, job->first, job->number, job_progress, job,
                                  &job->err);
}

static PyObject *plan_execute_output(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "folder", "output", "watch", NULL };
    PyObject *path, *watch = Py_None, *made;
    unsigned long long output;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&K|O:execute_output", names,
                                     PyUnicode_FSConverter, &path, &output, &watch))
        return NULL;
    made = plan_run((Plan *)self, path, Py_None, watch, (size_t)output, work_execute_output);
    Py_DECREF(path);
    return made;
}

static aq_status work_execute(Job *job) {
    return aq_plan_execute(job->context, job->plan, job->first, job_progress, job, &job->err);
}

static PyObject *plan_execute(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "output_path", "progress", NULL };
    PyObject *path, *progress = Py_None, *made;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|O:execute", names, PyUnicode_FSConverter,
                                     &path, &progress))
        return NULL;
    made = plan_run((Plan *)self, path, progress, Py_None, 0, work_execute);
    Py_DECREF(path);
    return made;
}

static PyObject *plan_commit(PyObject *object, PyObject *unused) {
    Plan *self = (Plan *)object;
    aq_result result;
    char *text = NULL;
    size_t size = 0;
    aq_status status;
    aq_error err;
    (void)unused;
    clear_error(&err, AQ_OK);
    if (!plan_open(self)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = aq_plan_commit(&self->context, self->plan, &result, &err);
    if (status == AQ_OK) {
        status = aq_result_to_json(&self->context, &result, true, &text, &size, &err);
        aq_result_free(&result);
    }
    Py_END_ALLOW_THREADS
    plan_leave(self);
    return status == AQ_OK ? take_text(&self->context, text, size) : raise_error(&err);
}

static PyMethodDef plan_methods[] = {
    { "close", plan_close, METH_NOARGS, "close($self, /)\n--\n\nRemoves what was executed and not committed." },
    { "json", plan_json, METH_NOARGS, "json($self, /)\n--\n\nThe plan as JSON text." },
    { "outputs", plan_outputs, METH_NOARGS, "outputs($self, /)\n--\n\n[(relative path, bytes of input)] of the weight files to be written." },
    { "begin", plan_begin, METH_VARARGS, "begin($self, output_path, /)\n--\n\nBegins a run that several processes share; the temporary folder's path." },
    { "execute_output", (PyCFunction)(void (*)(void))plan_execute_output, METH_VARARGS | METH_KEYWORDS, "execute_output($self, folder, output, watch=None)\n--\n\nMakes one file of a run that another plan has begun. An exception of watch, which is called without\narguments some ten times a second, ends it." },
    { "execute", (PyCFunction)(void (*)(void))plan_execute, METH_VARARGS | METH_KEYWORDS, "execute($self, output_path, progress=None)\n--\n\nQuantizes into a temporary folder; makes what a shared run lacks." },
    { "commit", plan_commit, METH_NOARGS, "commit($self, /)\n--\n\nPuts the output in its place; the result as JSON text." },
    { NULL, NULL, 0, NULL },
};

static PyType_Slot plan_slots[] = {
    { Py_tp_new, (void *)plan_new },
    { Py_tp_dealloc, (void *)plan_dealloc },
    { Py_tp_doc, WHICH("Plan(model_path, config=None, context=None)\n--\n\nWhat a run will do: made, executed, committed.") },
    { Py_tp_methods, plan_methods },
    { 0, NULL },
};

static PyType_Spec plan_spec = { "arrowquant._core.Plan", sizeof(Plan), 0, Py_TPFLAGS_DEFAULT,
                                 plan_slots };

/* ================================================================ whole models */

/* validate (against gates) and compare (without) differ in their library call alone. */
static aq_status work_measure(Job *job) {
    aq_validation out;
    aq_status status =
        job->flag ? aq_validate_quality(job->context, job->first, job->second, job->config,
                                        job_progress, job, &out, &job->err)
                  : aq_compare_models(job->context, job->first, job->second, job_progress, job, &out,
                                      &job->err);
    if (status == AQ_OK) {
        status = aq_validation_to_json(job->context, &out, &job->text, &job->text_size, &job->err);
        aq_validation_free(&out);
    }
    return status;
}

static PyObject *measure(PyObject *module, PyObject *args, PyObject *kwargs, bool gates) {
    static char *names[] = { "first_path", "second_path", "config", "context", "progress", NULL };
    PyObject *first, *second, *config = Py_None, *context = Py_None, *progress = Py_None;
    PyObject *result = NULL;
    const State *state = state_of(module);
    aq_config copy;
    bool with_config = false;
    const aq_context *asked;
    aq_context own;
    Job job;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&|OOO", names, PyUnicode_FSConverter, &first,
                                     PyUnicode_FSConverter, &second, &config, &context, &progress))
        return NULL;
    if (config != Py_None) {
        with_config = is_config(state, config) && config_clone(config, &copy);
        if (!with_config) goto end;
    }
    if (!context_of_call(state, context, 0, &own, &asked)) goto end;
    job_begin(&job, &own, asked, progress);
    job.first = PyBytes_AsString(first);
    job.second = PyBytes_AsString(second);
    job.config = with_config ? &copy : NULL;
    job.flag = gates;
    (void)job_run(&job, work_measure);
    if (job_good(&job)) result = PyUnicode_DecodeUTF8(job.text, (Py_ssize_t)job.text_size, "replace");
    aq_text_free(&own, job.text, job.text_size);
end:
    if (with_config) aq_config_free(&copy);
    Py_DECREF(first);
    Py_DECREF(second);
    return result;
}

static PyObject *validate(PyObject *module, PyObject *args, PyObject *kwargs) {
    return measure(module, args, kwargs, true);
}

static PyObject *compare(PyObject *module, PyObject *args, PyObject *kwargs) {
    return measure(module, args, kwargs, false);
}

static aq_status work_dequantize_model(Job *job) {
    return aq_dequantize_model(job->context, job->first, job->second, job->dtype, job->flag,
                               job_progress, job, &job->err);
}

static PyObject *dequantize_model(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "quantized_path", "output_path", "dtype", "overwrite", "context",
                             "progress", NULL };
    PyObject *from, *to, *context = Py_None, *progress = Py_None, *result = NULL;
    aq_dtype dtype = AQ_DTYPE_BF16;
    int overwrite = 0;
    const aq_context *asked;
    aq_context own;
    Job job;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&|O&pOO:dequantize_model", names,
                                     PyUnicode_FSConverter, &from, PyUnicode_FSConverter, &to,
                                     dtype_converter, &dtype, &overwrite, &context, &progress))
        return NULL;
    if (context_of_call(state_of(module), context, 0, &own, &asked)) {
        job_begin(&job, &own, asked, progress);
        job.first = PyBytes_AsString(from);
        job.second = PyBytes_AsString(to);
        job.dtype = dtype;
        job.flag = overwrite != 0;
        (void)job_run(&job, work_dequantize_model);
        if (job_good(&job)) result = Py_NewRef(Py_None);
    }
    Py_DECREF(from);
    Py_DECREF(to);
    return result;
}

/* sys.unraisablehook for an exception, as for one raised in a __del__. */
static PyObject *write_unraisable(PyObject *module, PyObject *args) {
    PyObject *exception, *object;
    (void)module;
    if (!PyArg_ParseTuple(args, "OO:write_unraisable", &exception, &object)) return NULL;
    PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    PyErr_WriteUnraisable(object);
    Py_RETURN_NONE;
}

/* The command-line tool; Ctrl-C is its own while it runs. */
static PyObject *run_tool(PyObject *module, PyObject *args) {
    PyObject *list, *result = NULL, **encoded;
    Py_ssize_t count, i;
    char **argv;
    int status;
    (void)module;
    if (!PyArg_ParseTuple(args, "O!:run_tool", &PyList_Type, &list)) return NULL;
    list = PyList_AsTuple(list);
    if (!list) return NULL;
    count = PyTuple_Size(list);
    argv = (char **)calloc((size_t)count + 2, sizeof *argv);
    encoded = (PyObject **)calloc((size_t)count + 1, sizeof *encoded);
    if (argv && encoded) {
        argv[0] = (char *)(uintptr_t)"aq";
        for (i = 0; i < count; i++) {
            if (!PyUnicode_FSConverter(PyTuple_GetItem(list, i), &encoded[i])) break;
            argv[i + 1] = PyBytes_AsString(encoded[i]);
        }
        if (i == count) {
            PyOS_sighandler_t interrupt = PyOS_getsig(SIGINT), terminate = PyOS_getsig(SIGTERM);
            Py_BEGIN_ALLOW_THREADS
            status = aq_tool_main((int)count + 1, argv);
            Py_END_ALLOW_THREADS
            PyOS_setsig(SIGINT, interrupt);
            PyOS_setsig(SIGTERM, terminate);
            result = PyLong_FromLong(status);
        }
        for (i = 0; i < count; i++) Py_XDECREF(encoded[i]);
    } else {
        PyErr_NoMemory();
    }
    free(argv);
    free(encoded);
    Py_DECREF(list);
    return result;
}

/* ================================================================ tables of layers */

/* The rows of one batch; on success the array is ours. */
static int arrow_rows(const State *state, const struct ArrowSchema *schema, struct ArrowArray *array,
                      PyObject *list) {
    size_t count = (size_t)array->length, i;
    aq_arrow_weights *rows = (aq_arrow_weights *)calloc(count ? count : 1, sizeof *rows);
    Block *block = block_new(NULL);
    int status = rows && block ? 0 : -1;
    aq_error err;
    clear_error(&err, AQ_OK);
    if (status != 0) PyErr_NoMemory();
    if (status == 0 && aq_arrow_import_weights(schema, array, rows, &err) != AQ_OK) {
        raise_error(&err);
        status = -1;
    }
    if (status == 0) {
        block->arrow = *array;
        array->release = NULL;
    }
    for (i = 0; status == 0 && i < count; i++) {
        Py_ssize_t shape[RANK_MAX];
        size_t d, rank = rows[i].shape ? rows[i].rank : 1;
        PyObject *row = NULL;
        shape[0] = (Py_ssize_t)rows[i].count;
        for (d = 0; rows[i].shape && d < rank && d < RANK_MAX; d++)
            shape[d] = (Py_ssize_t)rows[i].shape[d];
        if (rank > RANK_MAX) {
            PyErr_SetString(PyExc_ValueError, "shape: at most 32 axes");
        } else {
            PyObject *weights = array_new(state, block, rows[i].weights, rows[i].dtype, (int)rank,
                                          shape, true);
            if (weights) row = Py_BuildValue("(s#N)", rows[i].name, (Py_ssize_t)rows[i].name_size,
                                             weights);
        }
        status = row ? PyList_Append(list, row) : -1;
        Py_XDECREF(row);
    }
    block_release(block);
    free(rows);
    return status;
}

static int arrow_batches(const State *state, PyObject *object, PyObject *list) {
    PyObject *capsule = PyObject_CallMethod(object, "__arrow_c_stream__", NULL), *name;
    struct ArrowArrayStream *stream;
    struct ArrowSchema schema;
    int status = -1;
    if (!capsule) return -1;
    memset(&schema, 0, sizeof schema);
    name = PyUnicode_FromString("table");
    stream = (struct ArrowArrayStream *)PyCapsule_GetPointer(capsule, "arrow_array_stream");
    if (name && stream && stream->release) {
        status = stream->get_schema(stream, &schema) == 0 ? 0 : stream_error(stream, name);
        while (status == 0) {
            struct ArrowArray array;
            memset(&array, 0, sizeof array);
            if (stream->get_next(stream, &array) != 0) status = stream_error(stream, name);
            else if (!array.release) break;
            else status = arrow_rows(state, &schema, &array, list);
            if (array.release) array.release(&array);
        }
        if (schema.release) schema.release(&schema);
    }
    Py_XDECREF(name);
    Py_DECREF(capsule);
    return status;
}

static int arrow_batch(const State *state, PyObject *object, PyObject *list) {
    PyObject *pair = PyObject_CallMethod(object, "__arrow_c_array__", NULL);
    struct ArrowSchema *schema;
    struct ArrowArray *array;
    int status = -1;
    if (!pair) return -1;
    if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2) {
        PyErr_SetString(PyExc_TypeError, "__arrow_c_array__: expected two capsules");
    } else {
        schema = (struct ArrowSchema *)PyCapsule_GetPointer(PyTuple_GetItem(pair, 0), "arrow_schema");
        array = (struct ArrowArray *)PyCapsule_GetPointer(PyTuple_GetItem(pair, 1), "arrow_array");
        if (schema && array && array->release) status = arrow_rows(state, schema, array, list);
    }
    Py_DECREF(pair);
    return status;
}

static PyObject *arrow_weights(PyObject *module, PyObject *args) {
    PyObject *object, *list;
    int has, status = -1;
    if (!PyArg_ParseTuple(args, "O:arrow_weights", &object)) return NULL;
    list = PyList_New(0);
    if (!list) return NULL;
    has = has_attribute(object, "__arrow_c_stream__");
    if (has == 1) {
        status = arrow_batches(state_of(module), object, list);
    } else if (has == 0 && (has = has_attribute(object, "__arrow_c_array__")) == 1) {
        status = arrow_batch(state_of(module), object, list);
    } else if (has == 0) {
        PyErr_Format(PyExc_TypeError, "table: expected an Arrow table or record batch (pyarrow, "
                     "polars, anything with Arrow capsules), found %R", Py_TYPE(object));
    }
    if (status != 0) Py_CLEAR(list);
    return list;
}

/* What exported layers point to; freed by whoever gives the last piece back, without the GIL. */
typedef struct LayerHolder {
    size_t count;
    aq_arrow_layer *layers;
    Block **blocks; /* four of each layer: codes, scales, zero points, minima */
    int64_t (*shapes)[RANK_MAX];
} LayerHolder;

static void holder_release(void *user) {
    LayerHolder *holder = (LayerHolder *)user;
    size_t i;
    for (i = 0; holder->blocks && i < 4 * holder->count; i++) block_release(holder->blocks[i]);
    for (i = 0; holder->layers && i < holder->count; i++) free((void *)(uintptr_t)holder->layers[i].name);
    free(holder->layers);
    free(holder->blocks);
    free(holder->shapes);
    free(holder);
}

static int holder_fill(const State *state, LayerHolder *holder, size_t index, PyObject *name,
                       PyObject *object) {
    static const char *const figures[] = { "s", "z", "m" };
    aq_arrow_layer *layer = &holder->layers[index];
    const float *data[3] = { NULL, NULL, NULL };
    const Quantized *tensor = (const Quantized *)object;
    const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8AndSize(name, NULL) : NULL;
    size_t length = text ? strlen(text) + 1 : 0;
    char *copy;
    int i;
    if (!text || Py_TYPE(object) != state->quantized) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "expected names and QuantizedTensors");
        return -1;
    }
    if (tensor->tensor && tensor->tensor->input_scales) {
        PyErr_Format(PyExc_ValueError, "%s: the table has no column for the scales of an equalized "
                     "layer's input; dequantize it first", text);
        return -1;
    }
    if (tensor->spec.code == AQ_CODE_TRELLIS) {
        PyErr_Format(PyExc_ValueError, "%s: the table has no columns for a trellis code; dequantize it "
                     "first, or quantize with another method", text);
        return -1;
    }
    holder->blocks[4 * index] = tensor->block;
    block_retain(tensor->block);
    for (i = 0; i < 3; i++) {
        PyObject *array = quantized_figures(object, WHICH(figures[i]));
        if (!array) return -1;
        holder->blocks[4 * index + 1 + (size_t)i] = ((Array *)array)->block;
        block_retain(((Array *)array)->block);
        data[i] = (const float *)((Array *)array)->data;
        Py_DECREF(array);
    }
    copy = (char *)malloc(length);
    if (!copy) return PyErr_NoMemory(), -1;
    memcpy(copy, text, length);
    for (i = 0; i < tensor->ndim; i++) holder->shapes[index][i] = (int64_t)tensor->shape[i];
    layer->name = copy;
    layer->shape = holder->shapes[index];
    layer->rank = (size_t)tensor->ndim;
    layer->bit_width = (uint8_t)tensor->spec.bits;
    layer->group_size = tensor->spec.group_size;
    layer->data = tensor->codes;
    layer->data_bytes = tensor->layout.code_bytes;
    layer->scales = data[0];
    layer->zero_points = data[1];
    layer->mins = data[2];
    layer->groups = tensor->layout.rows * tensor->layout.groups;
    layer->method = tensor->method;
    layer->dtype = tensor->dtype;
    layer->cosine_similarity = tensor->cosine;
    layer->sqnr_db = tensor->sqnr;
    return 0;
}

static PyObject *arrow_pair(struct ArrowSchema *schema, struct ArrowArray *array) {
    PyObject *first = PyCapsule_New(schema, "arrow_schema", arrow_schema_capsule_free);
    PyObject *second = first ? PyCapsule_New(array, "arrow_array", arrow_array_capsule_free) : NULL;
    PyObject *pair = second ? PyTuple_Pack(2, first, second) : NULL;
    if (!first) {
        schema->release(schema);
        free(schema);
    }
    if (!second) {
        array->release(array);
        free(array);
    }
    Py_XDECREF(first);
    Py_XDECREF(second);
    return pair;
}

static PyObject *arrow_layers(PyObject *module, PyObject *args) {
    PyObject *names = NULL, *tensors = NULL;
    LayerHolder *holder = (LayerHolder *)calloc(1, sizeof *holder);
    struct ArrowSchema *schema = (struct ArrowSchema *)calloc(1, sizeof *schema);
    struct ArrowArray *array = (struct ArrowArray *)calloc(1, sizeof *array);
    aq_arrow_owner owner;
    aq_status status = AQ_ERR_ARGUMENT;
    aq_error err;
    size_t i, room;
    clear_error(&err, AQ_OK);
    if (!holder || !schema || !array) PyErr_NoMemory();
    else if (PyArg_ParseTuple(args, "O!O!:arrow_layers", &PyList_Type, &names, &PyList_Type, &tensors)) {
        names = PyList_AsTuple(names); /* nobody changes it meanwhile */
        tensors = PyList_AsTuple(tensors);
        holder->count = tensors ? (size_t)PyTuple_Size(tensors) : 0;
        room = holder->count ? holder->count : 1;
        holder->layers = (aq_arrow_layer *)calloc(room, sizeof *holder->layers);
        holder->blocks = (Block **)calloc(room, 4 * sizeof *holder->blocks);
        holder->shapes = (int64_t(*)[RANK_MAX])calloc(room, sizeof *holder->shapes);
        if (!holder->layers || !holder->blocks || !holder->shapes || !names || !tensors) PyErr_NoMemory();
        else if (PyTuple_Size(names) != (Py_ssize_t)holder->count)
            PyErr_SetString(PyExc_ValueError, "names and tensors must have the same length");
        for (i = 0; !PyErr_Occurred() && i < holder->count; i++)
            (void)holder_fill(state_of(module), holder, i, PyTuple_GetItem(names, (Py_ssize_t)i),
                              PyTuple_GetItem(tensors, (Py_ssize_t)i));
        if (!PyErr_Occurred()) {
            owner.release = holder_release;
            owner.user = holder;
            status = aq_arrow_export_layers(NULL, holder->layers, holder->count, NULL, 0, owner, schema,
                                            array, &err);
            if (status != AQ_OK) raise_error(&err);
        }
        Py_XDECREF(names);
        Py_XDECREF(tensors);
    }
    if (status == AQ_OK) return arrow_pair(schema, array);
    if (holder) holder_release(holder);
    free(schema);
    free(array);
    return NULL;
}

/* ================================================================ statistics of activations */

typedef struct Observer {
    PyObject_HEAD
    aq_observer *observer;
} Observer;

static PyObject *observer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "second_moments", NULL };
    aq_observer_options options;
    int second_moments = 0;
    Observer *self;
    aq_error err;
    clear_error(&err, AQ_OK);
    memset(&options, 0, sizeof options);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|p:Observer", names, &second_moments)) return NULL;
    options.second_moments = second_moments != 0;
    self = (Observer *)new_instance(type);
    if (self && aq_observer_create(NULL, &options, &self->observer, &err) != AQ_OK) {
        raise_error(&err);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void observer_dealloc(PyObject *self) {
    aq_observer_destroy(((Observer *)self)->observer);
    free_instance(self);
}

static PyObject *observer_feed(PyObject *self, PyObject *args) {
    PyObject *name, *object;
    const char *layer;
    long long timestep;
    const void *data = NULL;
    void *owned = NULL;
    aq_status status;
    aq_error err;
    Input in;
    clear_error(&err, AQ_OK);
    memset(&in, 0, sizeof in);
    if (!PyArg_ParseTuple(args, "ULO:feed", &name, &timestep, &object)) return NULL;
    layer = PyUnicode_AsUTF8AndSize(name, NULL);
    if (!layer || input_from(&in, object, name) != 0) {
        input_free(&in);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = input_settle(NULL, &in, &data, &owned, &err);
    if (status == AQ_OK) { /* channels are the last axis */
        uint64_t channels = in.ndim ? (uint64_t)in.shape[in.ndim - 1] : 1;
        status = aq_observer_feed(((Observer *)self)->observer, layer, timestep, in.dtype, data,
                                  channels ? in.count / channels : 0, channels, &err);
    }
    aligned_free(owned);
    Py_END_ALLOW_THREADS
    input_free(&in);
    return none_or_error(status, &err);
}

static PyObject *observer_file(PyObject *self, PyObject *args, bool save) {
    PyObject *path;
    aq_status status;
    aq_error err;
    clear_error(&err, AQ_OK);
    if (!PyArg_ParseTuple(args, "O&", PyUnicode_FSConverter, &path)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = save ? aq_observer_save(((Observer *)self)->observer, PyBytes_AsString(path), &err)
                  : aq_observer_load(((Observer *)self)->observer, PyBytes_AsString(path), &err);
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    return none_or_error(status, &err);
}

static PyObject *observer_save(PyObject *self, PyObject *args) { return observer_file(self, args, true); }
static PyObject *observer_load(PyObject *self, PyObject *args) { return observer_file(self, args, false); }

static PyMethodDef observer_methods[] = {
    { "feed", observer_feed, METH_VARARGS, "feed($self, layer, timestep, data, /)\n--\n\nAdds rows of a layer's input; the last axis is its channels." },
    { "save", observer_save, METH_VARARGS, "save($self, path, /)\n--\n\nWrites a calibration file." },
    { "load", observer_load, METH_VARARGS, "load($self, path, /)\n--\n\nAdds what a calibration file knows." },
    { NULL, NULL, 0, NULL },
};

static PyType_Slot observer_slots[] = {
    { Py_tp_new, (void *)observer_new },
    { Py_tp_dealloc, (void *)observer_dealloc },
    { Py_tp_doc, WHICH("Observer(second_moments=False)\n--\n\nGathers statistics of layer inputs by timestep, in any number of threads.") },
    { Py_tp_methods, observer_methods },
    { 0, NULL },
};

static PyType_Spec observer_spec = { "arrowquant._core.Observer", sizeof(Observer), 0,
                                     Py_TPFLAGS_DEFAULT, observer_slots };

static PyObject *markov_row(const char *name, const aq_markov *markov) {
    PyObject *scores = PyList_New(0), *violations = PyList_New(0), *item;
    uint32_t i;
    for (i = 0; scores && i < markov->boundary_count; i++) {
        item = PyFloat_FromDouble(markov->boundary_scores[i]);
        if (!item || PyList_Append(scores, item) != 0) Py_CLEAR(scores);
        Py_XDECREF(item);
    }
    for (i = 0; violations && i < markov->violation_count; i++) {
        const aq_markov_violation *violation = &markov->violations[i];
        item = Py_BuildValue("{sIsdsdssss}", "boundary_idx", violation->boundary, "scale_jump",
                             violation->scale_jump, "zero_point_jump", violation->zero_point_jump,
                             "severity", aq_severity_name(violation->severity), "layer", name);
        if (!item || PyList_Append(violations, item) != 0) Py_CLEAR(violations);
        Py_XDECREF(item);
    }
    if (scores && violations)
        return Py_BuildValue("(sdNN)", name, markov->smoothness_score, scores, violations);
    Py_XDECREF(scores);
    Py_XDECREF(violations);
    return NULL;
}

static PyObject *markov_rows(const aq_calibration *calibration, const aq_time_options *options,
                             double threshold) {
    PyObject *list = PyList_New(0), *row;
    size_t i;
    for (i = 0; list && i < calibration->layer_count; i++) {
        const aq_calibration_layer *layer = &calibration->layers[i];
        aq_time_groups groups;
        aq_markov markov;
        aq_error err;
        if (!layer->timestep_count || !layer->min || !layer->max) continue;
        memset(&groups, 0, sizeof groups);
        clear_error(&err, AQ_OK);
        if (aq_time_groups_make(NULL, layer, options, &groups, &err) != AQ_OK) {
            raise_error(&err);
            Py_CLEAR(list);
            break;
        }
        aq_markov_measure(groups.scale[0], groups.zero_point[0], groups.count, threshold, &markov);
        aq_time_groups_free(&groups);
        row = markov_row(layer->name, &markov);
        if (!row || PyList_Append(list, row) != 0) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *markov_metrics(PyObject *module, PyObject *args) {
    PyObject *list, *result = NULL, **encoded;
    unsigned int samples;
    double threshold;
    aq_time_options options;
    aq_calibration *calibration = NULL;
    const char **paths;
    size_t count, i;
    aq_status status;
    aq_error err;
    (void)module;
    memset(&options, 0, sizeof options);
    clear_error(&err, AQ_OK);
    if (!PyArg_ParseTuple(args, "O!IIId:markov_metrics", &PyList_Type, &list, &samples,
                          &options.num_time_groups, &options.total_timesteps, &threshold))
        return NULL;
    list = PyList_AsTuple(list);
    if (!list) return NULL;
    options.percentile = 99.9;
    count = (size_t)PyTuple_Size(list);
    paths = (const char **)calloc(count + 1, sizeof *paths);
    encoded = (PyObject **)calloc(count + 1, sizeof *encoded);
    if (!paths || !encoded) PyErr_NoMemory();
    for (i = 0; paths && encoded && i < count; i++) {
        if (!PyUnicode_FSConverter(PyTuple_GetItem(list, (Py_ssize_t)i), &encoded[i])) break;
        paths[i] = PyBytes_AsString(encoded[i]);
    }
    if (!PyErr_Occurred()) {
        Py_BEGIN_ALLOW_THREADS
        status = aq_calibration_open(NULL, paths, count, samples, &calibration, &err);
        Py_END_ALLOW_THREADS
        result = status == AQ_OK ? markov_rows(calibration, &options, threshold) : raise_error(&err);
        aq_calibration_close(calibration);
    }
    for (i = 0; encoded && i < count; i++) Py_XDECREF(encoded[i]);
    free(encoded);
    free(paths);
    Py_DECREF(list);
    return result;
}

/* ================================================================ methods */

static PyMethodDef module_methods[] = {
    { "quantize_batch", (PyCFunction)(void (*)(void))quantize_batch, METH_VARARGS | METH_KEYWORDS, "quantize_batch($module, names, weights, bit_width, group_size, symmetric=False, parameter_bits=16, num_threads=0, context=None, progress=None, keep_going=False, records=False, trellis_states=0)\n--\n\nQuantizes tensors in memory; a QuantizedTensor (or exception, with keep_going) each; with records a\ntuple of it, its scales and its zero points." },
    { "arrow_weights", arrow_weights, METH_VARARGS, "arrow_weights($module, table, /)\n--\n\n[(layer_name, Array)] of a table of weights; nothing is copied." },
    { "arrow_layers", arrow_layers, METH_VARARGS, "arrow_layers($module, names, tensors, /)\n--\n\nArrow capsules (schema, array) of a record batch of quantized layers." },
    { "markov_metrics", markov_metrics, METH_VARARGS, "markov_metrics($module, paths, samples, num_time_groups, total_timesteps, threshold, /)\n--\n\n[(layer, score, boundary scores, violations)] of calibration files." },
    { "quantized_from_parts", quantized_from_parts, METH_VARARGS, "quantized_from_parts($module, codes, params, extra, shape, bit_width, group_size, code, parameter_type, cosine_similarity, sqnr_db, max_error, method, dtype, trellis_states, rotation, /)\n--\n\nA QuantizedTensor from the parts of another." },
    { "validate", (PyCFunction)(void (*)(void))validate, METH_VARARGS | METH_KEYWORDS, "validate($module, first_path, second_path, config=None, context=None, progress=None)\n--\n\nCompares a quantized model with its original; JSON text." },
    { "compare", (PyCFunction)(void (*)(void))compare, METH_VARARGS | METH_KEYWORDS, "compare($module, first_path, second_path, config=None, context=None, progress=None)\n--\n\nCompares the float tensors of two models; JSON text." },
    { "dequantize_model", (PyCFunction)(void (*)(void))dequantize_model, METH_VARARGS | METH_KEYWORDS, "dequantize_model($module, quantized_path, output_path, dtype='bfloat16', overwrite=False, context=None, progress=None)\n--\n\nWrites a quantized model as plain safetensors." },
    { "config_fields", config_fields, METH_NOARGS, "config_fields($module, /)\n--\n\n[(name, type, environment variable, doc)] of every field of a configuration." },
    { "write_unraisable", write_unraisable, METH_VARARGS, "write_unraisable($module, exception, where, /)\n--\n\nReports an exception through sys.unraisablehook." },
    { "run_tool", run_tool, METH_VARARGS, "run_tool($module, arguments, /)\n--\n\nRuns the command-line tool in this process; its exit status." },
    { NULL, NULL, 0, NULL },
};

static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **out) {
    *out = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *out ? PyModule_AddType(module, *out) : -1;
}

static int module_exec(PyObject *module) {
    State *state = state_of(module);
    if (add_type(module, &config_spec, &state->config) != 0 ||
        add_type(module, &context_spec, &state->context) != 0 ||
        add_type(module, &array_spec, &state->array) != 0 ||
        add_type(module, &quantized_spec, &state->quantized) != 0 ||
        add_type(module, &model_spec, &state->model) != 0 ||
        add_type(module, &plan_spec, &state->plan) != 0 ||
        add_type(module, &observer_spec, &state->observer) != 0)
        return -1;
    return PyModule_AddStringConstant(module, "version", aq_version());
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    State *state = state_of(module);
    Py_VISIT(state->config);
    Py_VISIT(state->context);
    Py_VISIT(state->array);
    Py_VISIT(state->quantized);
    Py_VISIT(state->model);
    Py_VISIT(state->plan);
    Py_VISIT(state->observer);
    return 0;
}

static int module_clear(PyObject *module) {
    State *state = state_of(module);
    Py_CLEAR(state->config);
    Py_CLEAR(state->context);
    Py_CLEAR(state->array);
    Py_CLEAR(state->quantized);
    Py_CLEAR(state->model);
    Py_CLEAR(state->plan);
    Py_CLEAR(state->observer);
    return 0;
}

static void module_free(void *module) { (void)module_clear((PyObject *)module); }

/* No state outside of the module's own, so any number of interpreters may have it, each with a GIL of
 * its own (3.12) or none (3.13). Slots that a Python does not know it refuses. */
#define SLOT_INTERPRETERS 3
#define SLOT_GIL 4
static PyModuleDef_Slot slots_3_11[] = { { Py_mod_exec, (void *)module_exec }, { 0, NULL } };
static PyModuleDef_Slot slots_3_12[] = { { Py_mod_exec, (void *)module_exec },
                                         { SLOT_INTERPRETERS, (void *)2 }, { 0, NULL } };
static PyModuleDef_Slot slots_3_13[] = { { Py_mod_exec, (void *)module_exec },
                                         { SLOT_INTERPRETERS, (void *)2 }, { SLOT_GIL, (void *)1 },
                                         { 0, NULL } };

#define MODULE_DEF(slots)                                                                          \
    { PyModuleDef_HEAD_INIT, "arrowquant._core", "The C part of arrowquant.", sizeof(State),       \
      module_methods, slots, module_traverse, module_clear, module_free }
static PyModuleDef module_3_11 = MODULE_DEF(slots_3_11);
static PyModuleDef module_3_12 = MODULE_DEF(slots_3_12);
static PyModuleDef module_3_13 = MODULE_DEF(slots_3_13);

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void) {
    return PyModuleDef_Init(Py_Version >= 0x030D0000   ? &module_3_13
                            : Py_Version >= 0x030C0000 ? &module_3_12
                                                       : &module_3_11);
}
