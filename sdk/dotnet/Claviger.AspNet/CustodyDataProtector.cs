using System;
using System.Linq;
using System.Security.Cryptography;
using System.Threading;

namespace Claviger.AspNet
{
    /// <summary>
    /// What the machineKey of ASP.NET 4.5 does, done by a key in custody. It sees
    /// the purposes that ASP.NET derives its keys with, so that what it makes is the
    /// same to the byte, and what the machineKey made stays valid.
    /// </summary>
    public sealed class CustodyDataProtector : DataProtector
    {
        // A failure is not remembered: what was missing may be there at the next request.
        private static readonly Lazy<CustodyKey> Key = new Lazy<CustodyKey>(CustodyKey.FromSettings, LazyThreadSafetyMode.PublicationOnly);

        private readonly string[] purposes;

        public CustodyDataProtector(string applicationName, string primaryPurpose, string[] specificPurposes)
            : base(applicationName, primaryPurpose, specificPurposes)
        {
            purposes = (specificPurposes ?? new string[0]).ToArray();
        }

        /// <summary>The purposes are in the derivation; a hash of them before the plaintext would change the tokens.</summary>
        protected override bool PrependHashedPurposeToPlaintext => false;

        public override bool IsReprotectRequired(byte[] encryptedData) => false;

        protected override byte[] ProviderProtect(byte[] userData) =>
            Watch.Over(() => Key.Value.Protect(PrimaryPurpose, purposes, userData));

        protected override byte[] ProviderUnprotect(byte[] encryptedData) =>
            Watch.Over(() => Key.Value.Unprotect(PrimaryPurpose, purposes, encryptedData)) ?? throw new CryptographicException();
    }
}
