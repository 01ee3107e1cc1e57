// Energies and forces of many configurations of one molecule on a CPU.
//
// A thread takes W configurations at a time and keeps them on the contiguous axis: every arithmetic statement below is one loop over
// W lanes, which the compiler turns into vector instructions. A block of W configurations (positions, forces, Born radii)
// stays in the first- or second-level cache; parameters are read once a block and broadcast.
//
// Units: nm, kJ/mol, elementary charge, rad. The formulas are those of the torch reference beside this file
// (bonded.py, nonbonded.py, generalized_born.py), which is the truth that the tests compare with.
//
// Compiled with -ffast-math, so nothing here may rely on NaN or infinity being seen: the caller checks results.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

extern "C" {

// Must match the ctypes.Structure in native.py, field by field.
struct FeynkacTables {
    int64_t n_atoms, n_bonds, n_angles, n_torsions, n_harmonics, n_cmaps, n_exceptions;
    int64_t has_nonbonded, has_born, has_neck, buried_term;
    const int64_t *bond_atoms, *angle_atoms, *torsion_atoms;
    const double *bond_length, *bond_k, *angle_theta, *angle_k;
    const double *torsion_cosine, *torsion_sine;  // (n_torsions, n_harmonics)
    double torsion_constant;
    const int64_t *cmap_atoms;  // (n_cmaps, 8)
    const int64_t *cmap_size, *cmap_offset;
    const double *cmap_patches;
    const double *qq, *c6, *c12;  // (N, N)
    double cutoff, k_rf, c_rf;    // cutoff < 0: none
    const int64_t *exception_atoms;
    const double *exception_qq, *exception_c6, *exception_c12;
    const double *charge, *radius, *offset_radius, *scaled_radius, *tanh_coefficients;  // last: (N, 3)
    const double *neck_m, *neck_d;                                                      // (N, N)
    double neck_cutoff, born_coulomb, solute_dielectric, solvent_dielectric, kappa, surface, born_cutoff;
};
}

namespace {

constexpr double PROBE = 0.14;

#define LANES _Pragma("omp simd") for (int w = 0; w < W; ++w)

// One block's working memory: (rows, W) arrays in one allocation, a thread's own.
template <typename T, int W> struct Block {
    explicit Block(const FeynkacTables &t)
        : n(t.n_atoms), n_pairs(t.n_atoms * (t.n_atoms - 1) / 2),
          storage((12 * t.n_atoms + (t.has_born ? 2 * n_pairs : 0) + 4) * W + 64 / sizeof(T)) {
        T *p = storage.data();
        while (reinterpret_cast<uintptr_t>(p) % 64) ++p;
        auto take = [&](std::size_t rows) {
            T *start = p;
            p += rows * W;
            return start;
        };
        x = take(3 * n);
        f = take(3 * n);
        integral = take(n);
        born = take(n);
        born_slope = take(n);
        d_born = take(n);
        energy = take(1);
        if (t.has_born) {
            slope_ij = take(n_pairs);
            slope_ji = take(n_pairs);
        }
    }
    std::size_t n, n_pairs;
    std::vector<T> storage;
    T *x, *f, *integral, *born, *born_slope, *d_born, *energy;
    T *slope_ij = nullptr, *slope_ji = nullptr;
};

// The parameters in the precision of the evaluation, converted once a call.
template <typename T> struct Parameters {
    explicit Parameters(const FeynkacTables &t) {
        const std::size_t n = t.n_atoms;
        auto copy = [](std::vector<T> &to, const double *from, std::size_t count) { to.assign(from, from + count); };
        if (t.has_nonbonded) {
            for (std::size_t i = 0; i < n; ++i)
                for (std::size_t j = i + 1; j < n; ++j) {
                    qq.push_back(T(t.qq[i * n + j]));
                    c6.push_back(T(t.c6[i * n + j]));
                    c12.push_back(T(t.c12[i * n + j]));
                }
        }
        if (t.has_born) {
            copy(charge, t.charge, n);
            copy(own, t.offset_radius, n);
            copy(scaled, t.scaled_radius, n);
            copy(radius, t.radius, n);
        }
    }
    std::vector<T> qq, c6, c12, charge, own, scaled, radius;
};

template <typename T, int W> struct Evaluate {
    const FeynkacTables &t;
    const Parameters<T> &p;
    Block<T, W> &b;

    void bonds() {
        T *__restrict x = b.x, *__restrict f = b.f, *__restrict e = b.energy;
        for (int64_t m = 0; m < t.n_bonds; ++m) {
            const T *xi = x + 3 * W * t.bond_atoms[2 * m], *xj = x + 3 * W * t.bond_atoms[2 * m + 1];
            T *fi = f + 3 * W * t.bond_atoms[2 * m], *fj = f + 3 * W * t.bond_atoms[2 * m + 1];
            const T length = T(t.bond_length[m]), k = T(t.bond_k[m]);
            LANES {
                const T dx = xi[w] - xj[w], dy = xi[W + w] - xj[W + w], dz = xi[2 * W + w] - xj[2 * W + w];
                const T r = std::sqrt(dx * dx + dy * dy + dz * dz), stretch = r - length;
                e[w] += T(0.5) * k * stretch * stretch;
                const T s = -k * stretch / r;
                fi[w] += s * dx, fi[W + w] += s * dy, fi[2 * W + w] += s * dz;
                fj[w] -= s * dx, fj[W + w] -= s * dy, fj[2 * W + w] -= s * dz;
            }
        }
    }

    void angles() {
        T *__restrict x = b.x, *__restrict f = b.f, *__restrict e = b.energy;
        for (int64_t m = 0; m < t.n_angles; ++m) {
            const int64_t *a = t.angle_atoms + 3 * m;
            const T *xa = x + 3 * W * a[0], *xb = x + 3 * W * a[1], *xc = x + 3 * W * a[2];
            T *fa = f + 3 * W * a[0], *fb = f + 3 * W * a[1], *fc = f + 3 * W * a[2];
            const T theta0 = T(t.angle_theta[m]), k = T(t.angle_k[m]);
            LANES {
                const T ux = xa[w] - xb[w], uy = xa[W + w] - xb[W + w], uz = xa[2 * W + w] - xb[2 * W + w];
                const T vx = xc[w] - xb[w], vy = xc[W + w] - xb[W + w], vz = xc[2 * W + w] - xb[2 * W + w];
                const T nx = uy * vz - uz * vy, ny = uz * vx - ux * vz, nz = ux * vy - uy * vx;
                const T u2 = ux * ux + uy * uy + uz * uz, v2 = vx * vx + vy * vy + vz * vz;
                const T normal = std::max(std::sqrt(nx * nx + ny * ny + nz * nz), T(1e-18));
                const T bend = std::atan2(normal, ux * vx + uy * vy + uz * vz) - theta0;
                e[w] += T(0.5) * k * bend * bend;
                // d theta / d a = u x (u x v) / (|u|^2 |u x v|), and the same with v for c
                const T sa = -k * bend / (u2 * normal), sc = k * bend / (v2 * normal);
                const T fax = sa * (uy * nz - uz * ny), fay = sa * (uz * nx - ux * nz), faz = sa * (ux * ny - uy * nx);
                const T fcx = sc * (vy * nz - vz * ny), fcy = sc * (vz * nx - vx * nz), fcz = sc * (vx * ny - vy * nx);
                fa[w] += fax, fa[W + w] += fay, fa[2 * W + w] += faz;
                fc[w] += fcx, fc[W + w] += fcy, fc[2 * W + w] += fcz;
                fb[w] -= fax + fcx, fb[W + w] -= fay + fcy, fb[2 * W + w] -= faz + fcz;
            }
        }
    }

    // Geometry of a torsion a-b-c-d: cosine, sine, and the forces of dE/dphi (Bekker, Berendsen, van Gunsteren 1995).
    struct Torsion {
        T b1x[W], b1y[W], b1z[W], b2x[W], b2y[W], b2z[W], b3x[W], b3y[W], b3z[W];
        T n1x[W], n1y[W], n1z[W], n2x[W], n2y[W], n2z[W], length[W], cosine[W], sine[W];

        void measure(const T *__restrict x, const int64_t *a) {
            const T *xa = x + 3 * W * a[0], *xb = x + 3 * W * a[1], *xc = x + 3 * W * a[2], *xd = x + 3 * W * a[3];
            LANES {
                b1x[w] = xb[w] - xa[w], b1y[w] = xb[W + w] - xa[W + w], b1z[w] = xb[2 * W + w] - xa[2 * W + w];
                b2x[w] = xc[w] - xb[w], b2y[w] = xc[W + w] - xb[W + w], b2z[w] = xc[2 * W + w] - xb[2 * W + w];
                b3x[w] = xd[w] - xc[w], b3y[w] = xd[W + w] - xc[W + w], b3z[w] = xd[2 * W + w] - xc[2 * W + w];
                n1x[w] = b1y[w] * b2z[w] - b1z[w] * b2y[w];
                n1y[w] = b1z[w] * b2x[w] - b1x[w] * b2z[w];
                n1z[w] = b1x[w] * b2y[w] - b1y[w] * b2x[w];
                n2x[w] = b2y[w] * b3z[w] - b2z[w] * b3y[w];
                n2y[w] = b2z[w] * b3x[w] - b2x[w] * b3z[w];
                n2z[w] = b2x[w] * b3y[w] - b2y[w] * b3x[w];
                length[w] = std::sqrt(b2x[w] * b2x[w] + b2y[w] * b2y[w] + b2z[w] * b2z[w]);
                const T c = n1x[w] * n2x[w] + n1y[w] * n2y[w] + n1z[w] * n2z[w];
                const T s = (b1x[w] * n2x[w] + b1y[w] * n2y[w] + b1z[w] * n2z[w]) * length[w];
                const T norm = T(1) / std::sqrt(c * c + s * s);
                cosine[w] = c * norm, sine[w] = s * norm;
            }
        }

        void push(T *__restrict f, const int64_t *a, const T *slope) const {
            T *fa = f + 3 * W * a[0], *fb = f + 3 * W * a[1], *fc = f + 3 * W * a[2], *fd = f + 3 * W * a[3];
            LANES {
                const T sa = slope[w] * length[w] / (n1x[w] * n1x[w] + n1y[w] * n1y[w] + n1z[w] * n1z[w]);
                const T sd = -slope[w] * length[w] / (n2x[w] * n2x[w] + n2y[w] * n2y[w] + n2z[w] * n2z[w]);
                const T inverse2 = T(1) / (length[w] * length[w]);
                const T p = (b1x[w] * b2x[w] + b1y[w] * b2y[w] + b1z[w] * b2z[w]) * inverse2;
                const T q = (b3x[w] * b2x[w] + b3y[w] * b2y[w] + b3z[w] * b2z[w]) * inverse2;
                const T fax = sa * n1x[w], fay = sa * n1y[w], faz = sa * n1z[w];
                const T fdx = sd * n2x[w], fdy = sd * n2y[w], fdz = sd * n2z[w];
                const T sx = -p * fax + q * fdx, sy = -p * fay + q * fdy, sz = -p * faz + q * fdz;
                fa[w] += fax, fa[W + w] += fay, fa[2 * W + w] += faz;
                fd[w] += fdx, fd[W + w] += fdy, fd[2 * W + w] += fdz;
                fb[w] += sx - fax, fb[W + w] += sy - fay, fb[2 * W + w] += sz - faz;
                fc[w] -= sx + fdx, fc[W + w] -= sy + fdy, fc[2 * W + w] -= sz + fdz;
            }
        }
    };

    void torsions() {
        T *__restrict e = b.energy;
        Torsion g;
        T slope[W], c[W], s[W];
        for (int64_t m = 0; m < t.n_torsions; ++m) {
            g.measure(b.x, t.torsion_atoms + 4 * m);
            LANES { slope[w] = 0, c[w] = g.cosine[w], s[w] = g.sine[w]; }
            const double *cosine = t.torsion_cosine + m * t.n_harmonics, *sine = t.torsion_sine + m * t.n_harmonics;
            int64_t last = t.n_harmonics;
            while (last > 0 && cosine[last - 1] == 0.0 && sine[last - 1] == 0.0) --last;
            for (int64_t n = 1; n <= last; ++n) {
                const T kc = T(cosine[n - 1]), ks = T(sine[n - 1]), order = T(n);
                LANES {
                    e[w] += kc * c[w] + ks * s[w];
                    slope[w] += order * (ks * c[w] - kc * s[w]);
                    const T next = c[w] * g.cosine[w] - s[w] * g.sine[w];
                    s[w] = s[w] * g.cosine[w] + c[w] * g.sine[w];
                    c[w] = next;
                }
            }
            g.push(b.f, t.torsion_atoms + 4 * m, slope);
        }
        const T constant = T(t.torsion_constant);
        LANES e[w] += constant;
    }

    void cmaps() {
        T *__restrict e = b.energy;
        Torsion first, second;
        T slope_t[W], slope_u[W];
        for (int64_t m = 0; m < t.n_cmaps; ++m) {
            const int64_t *atoms = t.cmap_atoms + 8 * m;
            first.measure(b.x, atoms);
            second.measure(b.x, atoms + 4);
            const int64_t size = t.cmap_size[m];
            const double *patches = t.cmap_patches + t.cmap_offset[m];
            const double per_radian = double(size) / (2.0 * M_PI);
            for (int w = 0; w < W; ++w) {  // a table look-up a lane
                auto cell = [&](T cosine, T sine, int64_t &index) {
                    double step = std::atan2(double(sine), double(cosine)) * per_radian;
                    step += step < 0.0 ? double(size) : 0.0;
                    index = std::min(std::max(int64_t(step), int64_t(0)), size - 1);
                    return step - double(index);
                };
                int64_t i, j;
                const double v = cell(first.cosine[w], first.sine[w], i), u = cell(second.cosine[w], second.sine[w], j);
                const double *k = patches + 16 * (i * size + j);
                double value = 0, dv = 0, du = 0;
                for (int a = 3; a >= 0; --a) {
                    const double *row = k + 4 * a;
                    const double polynomial = row[0] + u * (row[1] + u * (row[2] + u * row[3]));
                    dv = dv * v + value;
                    value = value * v + polynomial;
                    du = du * v + row[1] + u * (2.0 * row[2] + 3.0 * u * row[3]);
                }
                e[w] += T(value), slope_t[w] = T(dv * per_radian), slope_u[w] = T(du * per_radian);
            }
            first.push(b.f, atoms, slope_t);
            second.push(b.f, atoms + 4, slope_u);
        }
    }

    void exceptions() {
        T *__restrict x = b.x, *__restrict f = b.f, *__restrict e = b.energy;
        for (int64_t m = 0; m < t.n_exceptions; ++m) {
            const int64_t i = t.exception_atoms[2 * m], j = t.exception_atoms[2 * m + 1];
            const T *xi = x + 3 * W * i, *xj = x + 3 * W * j;
            T *fi = f + 3 * W * i, *fj = f + 3 * W * j;
            const T qq = T(t.exception_qq[m]), c6 = T(t.exception_c6[m]), c12 = T(t.exception_c12[m]);
            LANES {
                const T dx = xi[w] - xj[w], dy = xi[W + w] - xj[W + w], dz = xi[2 * W + w] - xj[2 * W + w];
                const T inverse2 = T(1) / (dx * dx + dy * dy + dz * dz), inverse = std::sqrt(inverse2);
                const T i6 = inverse2 * inverse2 * inverse2;
                e[w] += qq * inverse + i6 * (c12 * i6 - c6);
                const T s = inverse2 * (qq * inverse + i6 * (T(12) * c12 * i6 - T(6) * c6));
                fi[w] += s * dx, fi[W + w] += s * dy, fi[2 * W + w] += s * dz;
                fj[w] -= s * dx, fj[W + w] -= s * dy, fj[2 * W + w] -= s * dz;
            }
        }
    }

    struct Burial {
        T value, slope;
    };

    // Burial of an atom (offset radius own) by another's scaled sphere at distance r: value and derivative.
    // buried is 1 for GBSAOBCForce, which adds 2 (1/own - 1/lower) inside the other's sphere, and 0 otherwise.
    static inline __attribute__((always_inline)) Burial burial(T r, T inverse, T own, T scaled, T buried) {
        // A sphere that lies wholly inside the atom (r + s < own) must give nothing: both limits are then equal.
        const T upper = std::max(own, r + scaled), lower = std::max(own, std::max(r - scaled, scaled - r));
        const T iu = T(1) / upper, il = T(1) / lower;
        const T difference = iu * iu - il * il, half_log = T(0.5) * std::log(lower * iu) * inverse;
        const T ratio = scaled * inverse;
        const T inside = scaled - r > own ? T(2) : T(0);
        // Upper limit and lower limit r - s drop out of the derivative; inside the sphere (lower = s - r) it is 2 / lower^2, and
        // GBSAOBCForce's extra term cancels exactly that.
        const T value = il - iu + T(0.25) * (r - scaled * ratio) * difference + half_log + inside * buried * (T(1) / own - il);
        const T slope = T(0.25) * (T(1) + ratio * ratio) * difference - half_log * inverse + inside * (T(1) - buried) * il * il;
        return {T(0.5) * value, T(0.5) * slope};
    }

    // Neck between two atoms: height / (1 + 100 d^2 + 0.3e6 d^6), d = r - position.
    static inline __attribute__((always_inline)) Burial neck(T r, T position, T height) {
        const T d = r - position, d2 = d * d;
        const T q = T(1) / (T(1) + T(100) * d2 + T(0.3e6) * d2 * d2 * d2);
        return {height * q, -height * q * q * d * (T(200) + T(1.8e6) * d2 * d2)};
    }

    template <bool NECK, bool CUTOFF> void born_integrals() {
        const int64_t n = t.n_atoms;
        T *__restrict x = b.x, *__restrict integral = b.integral;
        T *__restrict sij = b.slope_ij, *__restrict sji = b.slope_ji;
        const T buried = t.buried_term ? T(1) : T(0);
        const T cutoff2 = T(t.born_cutoff * t.born_cutoff), reach = T(t.neck_cutoff);
        std::fill(integral, integral + n * W, T(0));
        for (int64_t i = 0; i < n; ++i) {
            const T *xi = x + 3 * W * i;
            const T own_i = p.own[i], scaled_i = p.scaled[i];
            T sum_i[W] = {};
            for (int64_t j = i + 1; j < n; ++j, sij += W, sji += W) {
                const T *xj = x + 3 * W * j;
                T *integral_j = integral + W * j;
                const T own_j = p.own[j], scaled_j = p.scaled[j];
                const T mij = NECK ? T(t.neck_m[i * n + j]) : T(0), dij = NECK ? T(t.neck_d[i * n + j]) : T(0);
                const T mji = NECK ? T(t.neck_m[j * n + i]) : T(0), dji = NECK ? T(t.neck_d[j * n + i]) : T(0);
                const T neck_end = NECK ? p.radius[i] + p.radius[j] + reach : T(0);
                LANES {
                    const T dx = xi[w] - xj[w], dy = xi[W + w] - xj[W + w], dz = xi[2 * W + w] - xj[2 * W + w];
                    const T r2 = dx * dx + dy * dy + dz * dz;
                    const T inverse = T(1) / std::sqrt(r2), r = r2 * inverse;
                    Burial ij = burial(r, inverse, own_i, scaled_j, buried), ji = burial(r, inverse, own_j, scaled_i, buried);
                    if (NECK) {
                        const T near = r <= neck_end ? T(1) : T(0);
                        const Burial nij = neck(r, dij, near * mij), nji = neck(r, dji, near * mji);
                        ij.value += nij.value, ij.slope += nij.slope, ji.value += nji.value, ji.slope += nji.slope;
                    }
                    const T on = !CUTOFF || r2 <= cutoff2 ? T(1) : T(0);
                    sum_i[w] += on * ij.value, integral_j[w] += on * ji.value;
                    sij[w] = on * ij.slope, sji[w] = on * ji.slope;
                }
            }
            LANES integral[W * i + w] += sum_i[w];
        }
    }

    // Effective radii, self-energies and the surface term; leaves dE/dB in d_born and dB/dI in born_slope.
    void born_radii() {
        T *__restrict e = b.energy;
        const T factor_in = T(-t.born_coulomb / t.solute_dielectric), factor_out = T(t.born_coulomb / t.solvent_dielectric);
        const T kappa = T(t.kappa);
        for (int64_t i = 0; i < t.n_atoms; ++i) {
            const T own = p.own[i], radius = p.radius[i], q2 = p.charge[i] * p.charge[i];
            const T ca = T(t.tanh_coefficients[3 * i]), cb = T(t.tanh_coefficients[3 * i + 1]), cc = T(t.tanh_coefficients[3 * i + 2]);
            const T area = T(t.surface * (t.radius[i] + PROBE) * (t.radius[i] + PROBE));
            T *__restrict integral = b.integral + W * i, *__restrict born = b.born + W * i;
            T *__restrict slope = b.born_slope + W * i, *__restrict d_born = b.d_born + W * i;
            LANES {
                const T psi = integral[w] * own;
                const T argument = std::min(std::max(psi * (ca - psi * (cb - psi * cc)), T(-15)), T(15));
                const T e2 = std::exp(T(-2) * argument), th = (T(1) - e2) / (T(1) + e2);
                const T radius_b = T(1) / (T(1) / own - th / radius);
                born[w] = radius_b;
                slope[w] = radius_b * radius_b * (T(1) - th * th) * (ca - psi * (T(2) * cb - T(3) * cc * psi)) * own / radius;
                const T inverse = T(1) / radius_b;
                const T screen = kappa > T(0) ? std::exp(-kappa * radius_b) : T(1);
                const T self = T(0.5) * q2 * inverse;
                const T ratio = radius * inverse, ratio2 = ratio * ratio, surface = area * ratio2 * ratio2 * ratio2;
                e[w] += self * (factor_in + factor_out * screen) + surface;
                d_born[w] = -self * (inverse * (factor_in + factor_out * screen) + kappa * factor_out * screen) - T(6) * surface * inverse;
            }
        }
    }

    // All pairs: Lennard-Jones, Coulomb and the generalized Born pair energy; forces at fixed Born radii.
    template <bool NONBONDED, bool BORN, bool CUTOFF, bool SALT> void pairs() {
        const int64_t n = t.n_atoms;
        T *__restrict x = b.x, *__restrict f = b.f, *__restrict e = b.energy;
        T *__restrict born = b.born, *__restrict d_born = b.d_born;
        constexpr double FAR = 1e15;  // squared distance of "no cutoff" for the one of the two forces that has none
        const T cutoff2 = T(t.cutoff > 0 ? t.cutoff * t.cutoff : FAR), krf = T(t.k_rf), crf = T(t.c_rf);
        const T born_cutoff2 = T(t.born_cutoff > 0 ? t.born_cutoff * t.born_cutoff : FAR);
        const T factor_in = T(-t.born_coulomb / t.solute_dielectric), factor_out = T(t.born_coulomb / t.solvent_dielectric);
        const T kappa = T(t.kappa), shift = CUTOFF && t.born_cutoff > 0 ? T(1.0 / t.born_cutoff) : T(0);
        std::size_t k = 0;
        for (int64_t i = 0; i < n; ++i) {
            const T *xi = x + 3 * W * i;
            const T *bi = born + W * i;
            const T charge_i = BORN ? p.charge[i] : T(0);
            T fx[W] = {}, fy[W] = {}, fz[W] = {}, gi[W] = {}, energy_i[W] = {};
            for (int64_t j = i + 1; j < n; ++j, ++k) {
                const T *xj = x + 3 * W * j;
                T *fj = f + 3 * W * j;
                const T *bj = born + W * j;
                T *gj = d_born + W * j;
                const T qq = NONBONDED ? p.qq[k] : T(0), c6 = NONBONDED ? p.c6[k] : T(0), c12 = NONBONDED ? p.c12[k] : T(0);
                const T charges = BORN ? charge_i * p.charge[j] : T(0);
                LANES {
                    const T dx = xi[w] - xj[w], dy = xi[W + w] - xj[W + w], dz = xi[2 * W + w] - xj[2 * W + w];
                    const T r2 = dx * dx + dy * dy + dz * dz;
                    T energy = 0, s = 0;  // s = -(dE/dr)/r
                    if (NONBONDED) {
                        const T inverse2 = T(1) / r2, inverse = std::sqrt(inverse2), i6 = inverse2 * inverse2 * inverse2;
                        energy = i6 * (c12 * i6 - c6);
                        s = inverse2 * i6 * (T(12) * c12 * i6 - T(6) * c6);
                        energy += qq * (CUTOFF ? inverse + krf * r2 - crf : inverse);
                        s += qq * (CUTOFF ? inverse * inverse2 - T(2) * krf : inverse * inverse2);
                        if (CUTOFF) {
                            const T on = r2 <= cutoff2 ? T(1) : T(0);
                            energy *= on, s *= on;
                        }
                    }
                    if (BORN) {
                        const T product = bi[w] * bj[w], quarter = T(0.25) * r2 / product, ex = std::exp(-quarter);
                        const T f2 = r2 + product * ex, inverse_f = T(1) / std::sqrt(f2);
                        const T screen = SALT ? std::exp(-kappa * f2 * inverse_f) : T(1);
                        const T on = !CUTOFF || r2 <= born_cutoff2 ? charges : T(0);
                        const T factor = on * (factor_in + factor_out * screen);
                        energy += factor * (inverse_f - shift);
                        // dE/df, then df/d(r^2)/... : 2 f df = 2 r (1 - ex/4) dr + ex (1 + quarter) d(B_i B_j)
                        T slope = -factor * inverse_f * inverse_f;
                        if (SALT) slope -= on * kappa * factor_out * screen * (inverse_f - shift);
                        slope *= inverse_f;
                        s -= slope * (T(1) - T(0.25) * ex);
                        const T common = T(0.5) * slope * ex * (T(1) + quarter);
                        gi[w] += common * bj[w], gj[w] += common * bi[w];
                    }
                    energy_i[w] += energy;
                    fx[w] += s * dx, fy[w] += s * dy, fz[w] += s * dz;
                    fj[w] -= s * dx, fj[W + w] -= s * dy, fj[2 * W + w] -= s * dz;
                }
            }
            T *fi = f + 3 * W * i;
            T *g = d_born + W * i;
            LANES {
                e[w] += energy_i[w];
                fi[w] += fx[w], fi[W + w] += fy[w], fi[2 * W + w] += fz[w];
                if (BORN) g[w] += gi[w];
            }
        }
    }

    // Forces through the Born radii: dE/dI_i dI_i/dr for both atoms of every pair.
    void born_chain() {
        const int64_t n = t.n_atoms;
        T *__restrict x = b.x, *__restrict f = b.f, *__restrict g = b.d_born;
        const T *__restrict sij = b.slope_ij, *__restrict sji = b.slope_ji;
        for (int64_t i = 0; i < n * W; ++i) g[i] *= b.born_slope[i];
        for (int64_t i = 0; i < n; ++i) {
            const T *xi = x + 3 * W * i, *gi = g + W * i;
            T fx[W] = {}, fy[W] = {}, fz[W] = {};
            for (int64_t j = i + 1; j < n; ++j, sij += W, sji += W) {
                const T *xj = x + 3 * W * j, *gj = g + W * j;
                T *fj = f + 3 * W * j;
                LANES {
                    const T dx = xi[w] - xj[w], dy = xi[W + w] - xj[W + w], dz = xi[2 * W + w] - xj[2 * W + w];
                    const T s = -(gi[w] * sij[w] + gj[w] * sji[w]) / std::sqrt(dx * dx + dy * dy + dz * dz);
                    fx[w] += s * dx, fy[w] += s * dy, fz[w] += s * dz;
                    fj[w] -= s * dx, fj[W + w] -= s * dy, fj[2 * W + w] -= s * dz;
                }
            }
            T *fi = f + 3 * W * i;
            LANES { fi[w] += fx[w], fi[W + w] += fy[w], fi[2 * W + w] += fz[w]; }
        }
    }

    template <bool NONBONDED, bool BORN> void choose_pairs() {
        const bool cut = (NONBONDED && t.cutoff > 0) || (BORN && t.born_cutoff > 0), salt = BORN && t.kappa > 0;
        if (cut)
            salt ? pairs<NONBONDED, BORN, true, true>() : pairs<NONBONDED, BORN, true, false>();
        else
            salt ? pairs<NONBONDED, BORN, false, true>() : pairs<NONBONDED, BORN, false, false>();
    }

    void all() {
        bonds();
        angles();
        if (t.n_torsions) torsions();
        if (t.n_cmaps) cmaps();
        if (t.n_exceptions) exceptions();
        if (t.has_born) {
            const bool cut = t.born_cutoff > 0;
            if (t.has_neck)
                cut ? born_integrals<true, true>() : born_integrals<true, false>();
            else
                cut ? born_integrals<false, true>() : born_integrals<false, false>();
            born_radii();
        }
        if (t.has_nonbonded)
            t.has_born ? choose_pairs<true, true>() : choose_pairs<true, false>();
        else if (t.has_born)
            choose_pairs<false, true>();
        if (t.has_born) born_chain();
    }
};

template <typename T, int W>
void worker(const FeynkacTables &t, const Parameters<T> &p, const T *positions, int64_t count, double *energy, T *forces,
            std::atomic<int64_t> &next) {
    Block<T, W> block(t);
    const int64_t width = 3 * t.n_atoms;
    for (int64_t start; (start = next.fetch_add(W)) < count;) {
        const int64_t lanes = std::min<int64_t>(W, count - start);
        for (int64_t w = 0; w < W; ++w) {  // the last block repeats its last configuration in the unused lanes
            const T *row = positions + (start + std::min(w, lanes - 1)) * width;
            for (int64_t d = 0; d < width; ++d) block.x[d * W + w] = row[d];
        }
        std::fill(block.f, block.f + width * W, T(0));
        std::fill(block.energy, block.energy + W, T(0));
        Evaluate<T, W>{t, p, block}.all();
        for (int64_t w = 0; w < lanes; ++w) {
            energy[start + w] = double(block.energy[w]);
            if (forces)
                for (int64_t d = 0; d < width; ++d) forces[(start + w) * width + d] = block.f[d * W + w];
        }
    }
}

template <typename T, int W>
void evaluate(const FeynkacTables *t, const T *positions, int64_t count, double *energy, T *forces, int64_t threads) {
    const Parameters<T> parameters(*t);
    std::atomic<int64_t> next{0};
    threads = std::max<int64_t>(1, std::min(threads, (count + W - 1) / W));
    std::vector<std::thread> others;
    auto run = [&] { worker<T, W>(*t, parameters, positions, count, energy, forces, next); };
    for (int64_t i = 1; i < threads; ++i) others.emplace_back(run);
    run();
    for (auto &other : others) other.join();
}

}  // namespace

extern "C" {

void feynkac_evaluate_float(const FeynkacTables *t, const float *x, int64_t n, double *e, float *f, int64_t threads) {
    evaluate<float, 16>(t, x, n, e, f, threads);
}

void feynkac_evaluate_double(const FeynkacTables *t, const double *x, int64_t n, double *e, double *f, int64_t threads) {
    evaluate<double, 8>(t, x, n, e, f, threads);
}

int64_t feynkac_tables_size() { return sizeof(FeynkacTables); }
}
