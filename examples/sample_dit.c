/* Samples images from a diffusers DiT folder, quantized by this library or not, with DDIM.
 *
 *     cc -O2 examples/sample_dit.c -o sample_dit -lpthread -lm
 *     ./sample_dit digits-int4 --out digits.png
 *
 * The network is in dit.h, loading in dit_load.h, PNG in picture.h. The weights stay packed. */
#if !defined(_WIN32) && !defined(_DEFAULT_SOURCE)
#  define _DEFAULT_SOURCE
#endif
#define ARROWQUANT_IMPLEMENTATION
#include "../arrowquant.h"

#include "dit_load.h"
#include "picture.h"

#include <time.h>

static const char USAGE[] =
    "usage: sample_dit MODEL [options]\n"
    "  --out FILE           contact sheet, .png (or .pgm, .ppm); default samples.png\n"
    "  --samples FILE       the images as raw F32, too\n"
    "  --images N           how many; default 100, or as many as there is noise\n"
    "  --classes A,B,…      one for each image, repeated; default 0 … 9; -1: none\n"
    "  --steps N            of DDIM; default 50\n"
    "  --guidance X         classifier-free guidance; default 1: none\n"
    "  --seed N             of the noise; default 1\n"
    "  --noise FILE TENSOR  starts from a tensor of a safetensors file\n"
    "  --activations KIND   float (default); INT8: dynamic, a scale for each token, or static,\n"
    "                       a scale for each layer and group of timesteps, from --calibration\n"
    "  --calibration FILE   statistics of a run, for static activations\n"
    "  --time-groups N      of those; default 10\n"
    "  --cut KIND           where timesteps are cut into groups: optimal (default) or uniform\n"
    "  --repack             an interleaved copy of the weights: INT8 products are faster\n"
    "  --batch N            images at once; default 32\n"
    "  --threads N          default: all cores\n"
    "  --columns N          images in a line of the sheet; default 10\n"
    "  --zoom N             pixels for each pixel; default 4\n"
    "  --quiet              no report\n";

typedef struct options {
    const char *model, *out, *samples, *noise_file, *noise_tensor;
    const char *classes;
    const char *activations, *calibration, *cut;
    long images, groups, steps, batch, threads, columns, zoom;
    unsigned long seed;
    double guidance;
    int quiet, repack;
} options;

static int complain(const char *what, const char *detail) {
    fprintf(stderr, "sample_dit: %s%s%s\n", what, *detail ? ": " : "", detail);
    return 0;
}

/* ---- the command line */

static int parse_number(const char *name, const char *text, long least, long most, long *out) {
    char *end;
    *out = strtol(text, &end, 10);
    if (*end || end == text || *out < least || *out > most) {
        fprintf(stderr, "sample_dit: %s %s: a number from %ld to %ld is expected\n", name, text,
                least, most);
        return 0;
    }
    return 1;
}

static int parse_option(options *o, const char *name, const char *value) {
    long number = 0;
    char *end;
    if (strcmp(name, "--out") == 0) return o->out = value, 1;
    if (strcmp(name, "--samples") == 0) return o->samples = value, 1;
    if (strcmp(name, "--classes") == 0) return o->classes = value, 1;
    if (strcmp(name, "--activations") == 0) return o->activations = value, 1;
    if (strcmp(name, "--calibration") == 0) return o->calibration = value, 1;
    if (strcmp(name, "--cut") == 0) return o->cut = value, 1;
    if (strcmp(name, "--time-groups") == 0) return parse_number(name, value, 1, 100, &o->groups);
    if (strcmp(name, "--images") == 0) return parse_number(name, value, 1, 1000000, &o->images);
    if (strcmp(name, "--steps") == 0) return parse_number(name, value, 1, 1000000, &o->steps);
    if (strcmp(name, "--batch") == 0) return parse_number(name, value, 1, 100000, &o->batch);
    if (strcmp(name, "--threads") == 0) return parse_number(name, value, 0, 256, &o->threads);
    if (strcmp(name, "--columns") == 0) return parse_number(name, value, 1, 10000, &o->columns);
    if (strcmp(name, "--zoom") == 0) return parse_number(name, value, 1, 64, &o->zoom);
    if (strcmp(name, "--seed") == 0) {
        if (!parse_number(name, value, 0, 2147483647, &number)) return 0;
        return o->seed = (unsigned long)number, 1;
    }
    if (strcmp(name, "--guidance") == 0) {
        o->guidance = strtod(value, &end);
        return (*end || end == value) ? complain("--guidance is no number", value) : 1;
    }
    return complain("unknown option", name);
}

static int parse(int argc, char **argv, options *o) {
    int i;
    memset(o, 0, sizeof *o);
    o->out = "samples.png";
    o->activations = "float";
    o->cut = "optimal";
    o->groups = 10;
    o->steps = 50;
    o->batch = 32;
    o->columns = 10;
    o->zoom = 4;
    o->seed = 1;
    o->guidance = 1.0;
    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quiet") == 0) {
            o->quiet = 1;
        } else if (strcmp(argv[i], "--repack") == 0) {
            o->repack = 1;
        } else if (strcmp(argv[i], "--noise") == 0 && i + 2 < argc) {
            o->noise_file = argv[i + 1];
            o->noise_tensor = argv[i + 2];
            i += 2;
        } else if (strncmp(argv[i], "--", 2) != 0 && !o->model) {
            o->model = argv[i];
        } else if (i + 1 >= argc) {
            return complain("a value is missing, or one argument is too many", argv[i]);
        } else if (!parse_option(o, argv[i], argv[i + 1])) {
            return 0;
        } else {
            i++;
        }
    }
    return o->model ? 1 : complain("no model is given", "");
}

/* ---- what to draw */

/* A standard normal by splitmix64 and Box–Muller. */
static float normal(uint64_t *state) {
    double u[2];
    int i;
    for (i = 0; i < 2; i++) {
        uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
        z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
        u[i] = ((double)((z ^ (z >> 31)) >> 11) + 0.5) / 9007199254740992.0;
    }
    return (float)(sqrt(-2.0 * log(u[0])) * cos(6.283185307179586 * u[1]));
}

static int read_noise(aq_context *context, options *o, size_t pixels, float **out) {
    aq_model *file = NULL;
    const aq_tensor *tensor;
    aq_error err;
    int good = 0;
    if (aq_model_open(context, o->noise_file, &file, &err)) return complain(err.message, "");
    tensor = aq_model_find(file, o->noise_tensor);
    if (!tensor) {
        complain("the file of the noise has no such tensor", o->noise_tensor);
    } else if (tensor->rows == 0 || tensor->cols != pixels) {
        complain("the noise has not the shape of the model's images", o->noise_tensor);
    } else {
        if (!o->images || (uint64_t)o->images > tensor->rows) o->images = (long)tensor->rows;
        *out = (float *)malloc((size_t)o->images * pixels * sizeof **out);
        good = *out && !aq_tensor_dequantize(context, tensor, 0, (uint64_t)o->images,
                                             AQ_DTYPE_F32, *out, &err);
        if (!good) complain(*out ? err.message : "out of memory", "");
    }
    aq_model_close(file);
    return good;
}

static int make_noise(aq_context *context, options *o, size_t pixels, float **out) {
    uint64_t state = o->seed;
    size_t i;
    if (o->noise_file) return read_noise(context, o, pixels, out);
    if (!o->images) o->images = 100;
    *out = (float *)malloc((size_t)o->images * pixels * sizeof **out);
    if (!*out) return complain("out of memory", "");
    for (i = 0; i < (size_t)o->images * pixels; i++) (*out)[i] = normal(&state);
    return 1;
}

/* One class for each image; `count` − 1 of them and "none". */
static int make_classes(const options *o, size_t count, int **out) {
    const char *at = o->classes ? o->classes : "0,1,2,3,4,5,6,7,8,9";
    size_t used = 0, i;
    *out = (int *)malloc((size_t)o->images * sizeof **out);
    if (!*out) return complain("out of memory", "");
    while (used < (size_t)o->images) {
        char *end;
        long value = strtol(at, &end, 10);
        if (end == at || (*end && *end != ',') || value < -1 || value >= (long)count) {
            return complain("--classes: numbers below the model's count of classes are expected",
                            at);
        }
        (*out)[used++] = value < 0 ? (int)count : (int)value;
        if (!*end) break;
        at = end + 1;
    }
    for (i = used; i < (size_t)o->images; i++) (*out)[i] = (*out)[i - used];
    return 1;
}

/* ---- DDIM */

typedef struct sampler {
    dit_folder folder;
    const options *o;
    double *alphas; /* cumulative products */
    float *noise;   /* of a batch, as the network sees it: twice as many with guidance */
    float *twice;   /* the batch twice, with guidance */
    int *classes;   /* of those */
    dit_memory memory;
    void *block;
} sampler;

static int make_alphas(sampler *s) {
    const dit_schedule *schedule = &s->folder.schedule;
    double product = 1.0, start = schedule->beta_start, end = schedule->beta_end;
    int t;
    s->alphas = (double *)malloc((size_t)schedule->timesteps * sizeof *s->alphas);
    if (!s->alphas) return complain("out of memory", "");
    if (schedule->scaled) {
        start = sqrt(start);
        end = sqrt(end);
    }
    for (t = 0; t < schedule->timesteps; t++) {
        double part = schedule->timesteps > 1 ? (double)t / (schedule->timesteps - 1) : 0.0;
        double beta = start + (end - start) * part;
        s->alphas[t] = product *= 1.0 - (schedule->scaled ? beta * beta : beta);
    }
    return 1;
}

/* s->noise of `images` images, guided when asked for. */
static int predict(sampler *s, const float *x, const int *classes, size_t images, float t) {
    const dit *model = &s->folder.model;
    const size_t in = model->channels * model->size * model->size;
    const size_t out = model->out_channels * model->size * model->size;
    const float guidance = (float)s->o->guidance;
    size_t i, image;
    if (s->o->guidance == 1.0) {
        return dit_forward(model, x, t, classes, images, s->noise, &s->memory);
    }
    for (i = 0; i < 2; i++) memcpy(s->twice + i * images * in, x, images * in * sizeof *x);
    for (i = 0; i < images; i++) {
        s->classes[i] = classes[i];
        s->classes[images + i] = (int)model->classes;
    }
    if (!dit_forward(model, s->twice, t, s->classes, 2 * images, s->noise, &s->memory)) return 0;
    for (image = 0; image < images; image++) {
        float *with = s->noise + image * out;
        const float *without = s->noise + (images + image) * out;
        for (i = 0; i < in; i++) with[i] = without[i] + guidance * (with[i] - without[i]);
    }
    return 1;
}

/* x from noise to images, in place. */
static int sample(sampler *s, float *x, const int *classes, size_t images) {
    const dit *model = &s->folder.model;
    const dit_schedule *schedule = &s->folder.schedule;
    const size_t in = model->channels * model->size * model->size;
    const size_t out = model->out_channels * model->size * model->size;
    long ratio = schedule->timesteps / s->o->steps, step;
    size_t image, i;
    for (step = s->o->steps - 1; step >= 0; step--) {
        long t = step * ratio + schedule->offset, before = t - ratio;
        double alpha, next;
        if (t >= schedule->timesteps) t = schedule->timesteps - 1;
        alpha = s->alphas[t];
        next = before >= 0 ? s->alphas[before] : schedule->alpha_one ? 1.0 : s->alphas[0];
        if (!predict(s, x, classes, images, (float)t)) return complain(s->memory.err.message, "");
        for (image = 0; image < images; image++) {
            for (i = 0; i < in; i++) {
                double now = (double)x[image * in + i];
                double noise = (double)s->noise[image * out + i];
                double clean = (now - sqrt(1.0 - alpha) * noise) / sqrt(alpha);
                if (schedule->clip > 0.0) {
                    if (clean > schedule->clip) clean = schedule->clip;
                    if (clean < -schedule->clip) clean = -schedule->clip;
                    noise = (now - sqrt(alpha) * clean) / sqrt(1.0 - alpha);
                }
                x[image * in + i] = (float)(sqrt(next) * clean + sqrt(1.0 - next) * noise);
            }
        }
    }
    return 1;
}

static int set_activations(sampler *s, aq_context *context, const options *o) {
    aq_time_options time;
    if (strcmp(o->activations, "float") == 0) return 1;
    if (strcmp(o->activations, "dynamic") == 0) {
        s->folder.model.activation = AQ_ACTIVATION_DYNAMIC;
        return 1;
    }
    if (strcmp(o->activations, "static") != 0) {
        return complain("--activations: float, dynamic or static", o->activations);
    }
    memset(&time, 0, sizeof time);
    time.num_time_groups = (uint32_t)o->groups;
    time.total_timesteps = (uint32_t)s->folder.schedule.timesteps;
    time.range = AQ_RANGE_MIN_MAX;
    time.percentile = 99.99;
    time.cut = strcmp(o->cut, "uniform") == 0 ? AQ_TIME_CUT_UNIFORM : AQ_TIME_CUT_OPTIMAL;
    if (time.cut == AQ_TIME_CUT_OPTIMAL && strcmp(o->cut, "optimal") != 0) {
        return complain("--cut: optimal or uniform", o->cut);
    }
    if (!o->calibration) return complain("static activations need --calibration FILE", "");
    return dit_calibrate(&s->folder, context, o->calibration, &time) ||
           complain(s->folder.message, "");
}

static int open_sampler(sampler *s, aq_context *context, const options *o) {
    dit *model = &s->folder.model;
    size_t most, pixels;
    s->o = o;
    if (!dit_load(context, o->model, &s->folder)) return complain(s->folder.message, "");
    if (o->repack && !dit_repack(&s->folder, context)) return complain(s->folder.message, "");
    if (!set_activations(s, context, o)) return 0;
    if (o->steps > s->folder.schedule.timesteps) {
        return complain("--steps: more than the model was trained with", "");
    }
    most = (size_t)o->batch * (o->guidance == 1.0 ? 1u : 2u);
    pixels = model->out_channels * model->size * model->size;
    s->noise = (float *)malloc(most * pixels * sizeof *s->noise);
    s->twice = (float *)malloc(most * pixels * sizeof *s->twice);
    s->classes = (int *)malloc(most * sizeof *s->classes);
    s->block = malloc(dit_lay_out(model, most, NULL, NULL));
    if (!s->noise || !s->twice || !s->classes || !s->block) return complain("out of memory", "");
    (void)dit_lay_out(model, most, s->block, &s->memory);
    return make_alphas(s);
}

static void close_sampler(sampler *s) {
    free(s->alphas);
    free(s->noise);
    free(s->twice);
    free(s->classes);
    free(s->block);
    dit_unload(&s->folder);
}

/* ---- output */

static int write_raw(const char *path, const float *x, size_t count) {
    FILE *file = fopen(path, "wb");
    int good = file && fwrite(x, sizeof *x, count, file) == count;
    if (file && fclose(file) != 0) good = 0;
    return good ? 1 : complain("the samples could not be written", path);
}

/* −1 … 1 to 0 … 255. RGB when there are three channels, else the first one in grey. */
static int write_sheet(const options *o, const dit *model, const float *x) {
    const size_t size = model->size, zoom = (size_t)o->zoom, n = (size_t)o->images;
    const size_t columns = n < (size_t)o->columns ? n : (size_t)o->columns;
    const size_t lines = (n + columns - 1) / columns, channels = model->channels == 3 ? 3 : 1;
    const size_t width = columns * size * zoom, height = lines * size * zoom;
    uint8_t *pixels = (uint8_t *)calloc(width * height, channels);
    size_t at, c;
    int good;
    if (!pixels) return complain("out of memory", "");
    for (at = 0; at < width * height; at++) {
        size_t row = at / width / zoom, column = at % width / zoom;
        size_t image = row / size * columns + column / size;
        for (c = 0; c < channels && image < n; c++) {
            float value = (x[((image * model->channels + c) * size + row % size) * size +
                             column % size] + 1.0f) * 127.5f;
            pixels[at * channels + c] = (uint8_t)(value > 255.0f ? 255.0f
                                                  : value > 0.0f ? value : 0.0f);
        }
    }
    good = picture_write(o->out, pixels, width, height, channels);
    free(pixels);
    return good ? 1 : complain("the sheet could not be written", o->out);
}

static double seconds(void) {
#ifdef _WIN32
    return (double)clock() / CLOCKS_PER_SEC; /* there it counts real time */
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
#endif
}

static int run(aq_context *context, options *o) {
    sampler s;
    float *x = NULL;
    int *classes = NULL, good;
    size_t pixels = 0, done, n;
    double begin = 0.0, weights;
    memset(&s, 0, sizeof s);
    good = open_sampler(&s, context, o);
    if (good) {
        pixels = s.folder.model.channels * s.folder.model.size * s.folder.model.size;
        good = make_noise(context, o, pixels, &x) &&
               make_classes(o, s.folder.model.classes, &classes);
        begin = seconds();
    }
    for (done = 0; good && done < (size_t)o->images; done += n) {
        n = (size_t)o->images - done < (size_t)o->batch ? (size_t)o->images - done
                                                        : (size_t)o->batch;
        good = sample(&s, x + done * pixels, classes + done, n);
    }
    if (good && !o->quiet) {
        weights = (double)s.folder.file->weight_bytes / 1e6;
        printf("%ld images, %ld steps: %.2f s; weights %.3f MB\n", o->images, o->steps,
               seconds() - begin, weights);
    }
    good = good && write_sheet(o, &s.folder.model, x) &&
           (!o->samples || write_raw(o->samples, x, (size_t)o->images * pixels));
    free(x);
    free(classes);
    close_sampler(&s);
    return good;
}

int main(int argc, char **argv) {
    options o;
    aq_context *context;
    aq_error err;
    int good;
    if (!parse(argc, argv, &o)) {
        fputs(USAGE, stderr);
        return 2;
    }
    if (aq_context_create(AQ_ISA_AUTO, NULL, &context, &err)) return !complain(err.message, "");
    context->num_threads = (uint32_t)o.threads;
    good = run(context, &o);
    aq_context_destroy(context);
    return good ? 0 : 1;
}
